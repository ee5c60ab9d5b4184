"""Starts of vLLM that users published: read, and joined with the configuration of the model that was started."""

import csv
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from libs.common.errors import MeshError
from libs.inference.planner.architectures import model_facts
from libs.inference.planner.facts import ModelFacts
from libs.inference.planner.memory import GIB
from libs.inference.planner.options import Asked, Options, options_of
from libs.inference.planner.split import Parallel
from libs.inference.planner.versions import NEWEST, Engine, engine_of

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "data" / "planner"
DRAFTS = ("MTP", "DFlash", "draft")
UNPUBLISHED = ("must have been raised", "pre-existing usage")
UNQUANTISED = ("bf16", "fp16", "")


@dataclass(frozen=True, kw_only=True)
class MeasuredStart:
    """A published start. `facts` is None where `undecided` says why the model cannot be known."""

    cells: Mapping[str, str]
    facts: ModelFacts | None
    undecided: str

    @property
    def id(self) -> str:
        return self.cells["row_id"]

    @property
    def model(self) -> str:
        return self.cells["model"]

    def number(self, column: str) -> float | None:
        text = self.cells[column]
        return float(text) if text else None

    @property
    def parallel(self) -> Parallel | None:
        """None where the row does not say how many GPUs shared the model."""
        if not self.cells["tp"]:
            return None
        return Parallel(tensor=int(self.cells["tp"]), pipeline=int(self.cells["pp"] or 1))

    @property
    def total_bytes(self) -> int | None:
        """As the row says, or else as other rows report it of a GPU of the same name."""
        total = self.number("gpu_total_gib") or _reported_totals().get(gpu_name(self.cells))
        return None if total is None else int(total * GIB)

    @property
    def whose_files(self) -> bool:
        """Whether the row names the files that were loaded: of a model there may be several quantised variants."""
        stored = self.cells["dtype_quant"].split()[0] if self.cells["dtype_quant"] else ""
        return stored in UNQUANTISED or self.cells["model"] in _models()

    @property
    def drafted(self) -> bool:
        """A second, small model was loaded too, which the row does not describe."""
        return any(word in self.cells[column] for column in ("model", "note") for word in DRAFTS)

    @property
    def unpublished(self) -> bool:
        """The row's note says that an option was changed, or other memory used, without saying how much."""
        return any(words in self.cells["note"] for words in UNPUBLISHED)

    @property
    def engine(self) -> Engine | None:
        """Of several versions that a row names the newest."""
        text = re.sub(r"^[\d.]+[-/](?=\d)", "", self.cells["vllm_version"])
        tens = re.match(r"0\.(\d)x", text)
        try:
            return Engine(version=(0, 10 * int(tens[1]))) if tens else engine_of(text)
        except MeshError:
            return None

    def options(self, total_bytes: int) -> Options:
        assert self.facts is not None
        asked = Asked(
            gpu_memory_utilization=self.number("gpu_memory_utilization"),
            max_model_len=_whole(self.cells["max_model_len"]),
            max_num_batched_tokens=_whole(self.cells["max_num_batched_tokens"]),
            max_num_seqs=_whole(self.cells["max_num_seqs"]),
            kv_cache_dtype=self.cells["kv_cache_dtype"].rstrip("?") or "auto",
            enforce_eager=self.cells["enforce_eager"] == "1",
        )
        engine = self.engine or Engine(version=NEWEST)
        return options_of(self.facts, asked, engine, total_bytes, ampere="A100" in self.cells["gpu"])


def gpu_name(cells: Mapping[str, str]) -> str:
    """A GPU's name without how many there were and what is beside it; empty where the row is not sure of it."""
    name = re.sub(r"\s+x\d+.*|\s*\(.*", "", cells["gpu"]).strip()
    return "" if "?" in cells["gpu"] or re.search(r"\d GPUs|class|-\d+GB$", name) else name


@cache
def _reported_totals() -> Mapping[str, float]:
    totals: dict[str, list[float]] = {}
    with (FOLDER / "vllm_measured.csv").open(encoding="utf-8", newline="") as file:
        for cells in csv.DictReader(file):
            if cells["gpu_total_source"] == "reported" and gpu_name(cells):
                totals.setdefault(gpu_name(cells), []).append(float(cells["gpu_total_gib"]))
    return {name: median(found) for name, found in totals.items()}


def _whole(text: str) -> int | None:
    return int(text) if text else None


@cache
def measured_starts() -> tuple[MeasuredStart, ...]:
    with (FOLDER / "vllm_measured.csv").open(encoding="utf-8", newline="") as file:
        return tuple(_joined(cells) for cells in csv.DictReader(file))


def _joined(cells: Mapping[str, str]) -> MeasuredStart:
    name = _aliases().get(cells["model"], cells["model"])
    entry = _models().get(name)
    if entry is None:
        return MeasuredStart(cells=cells, facts=None, undecided="no configuration of this model is at hand")
    config = dict(entry["config"])
    stored = cells["dtype_quant"].split()[0] if cells["dtype_quant"] else ""
    quantised = "quantization_config" in config or "quantisation" in entry
    if stored in UNQUANTISED and cells["weights_gib_per_gpu"]:
        config.pop("quantization_config", None)
    elif stored not in UNQUANTISED and not quantised:
        return MeasuredStart(cells=cells, facts=None, undecided="how it is quantised is not in the configuration")
    try:
        return MeasuredStart(cells=cells, facts=model_facts(config, entry.get("quantisation")), undecided="")
    except MeshError as error:
        return MeasuredStart(cells=cells, facts=None, undecided=f"the model cannot be sized: {error.message}")


@cache
def _models() -> dict[str, dict[str, Any]]:
    return dict(json.loads((FOLDER / "models.json").read_text(encoding="utf-8")))


@cache
def _aliases() -> dict[str, str]:
    return dict(json.loads((FOLDER / "aliases.json").read_text(encoding="utf-8")))
