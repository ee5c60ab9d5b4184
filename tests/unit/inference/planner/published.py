"""Configurations that were published, and what was measured with them."""

import csv
import json
from functools import cache
from pathlib import Path
from typing import Any

from libs.inference.planner.architectures import model_facts
from libs.inference.planner.facts import ModelFacts

FOLDER = Path(__file__).resolve().parents[3] / "data" / "planner"


@cache
def models() -> dict[str, dict[str, Any]]:
    return dict(json.loads((FOLDER / "models.json").read_text(encoding="utf-8")))


@cache
def rows() -> list[dict[str, str]]:
    with (FOLDER / "vllm_measured.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def config(name: str, **changes: object) -> dict[str, Any]:
    """A published configuration with some fields replaced; None takes a field away."""
    return {**models()[name]["config"], **changes}


@cache
def facts(name: str) -> ModelFacts:
    entry = models()[name]
    return model_facts(entry["config"], entry.get("quantisation"))


LLAMA_8B_GGUF = {
    "general.architecture": "llama",
    "llama.block_count": 32,
    "llama.embedding_length": 4096,
    "llama.attention.head_count": 32,
    "llama.attention.head_count_kv": 8,
    "llama.context_length": 8192,
    "llama.vocab_size": 128256,
}
"""What the header of a GGUF file says of Llama 3.1 8B, as far as it sizes it."""
