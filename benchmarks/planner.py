"""`python -m benchmarks.planner`: how long it takes to size one model on one kind of GPU."""

import json
from pathlib import Path
from time import perf_counter

from libs.inference.planner.architectures import model_facts
from libs.inference.planner.memory import GIB, start
from libs.inference.planner.options import Asked, options_of
from libs.inference.planner.rules import refusals
from libs.inference.planner.split import Parallel
from libs.inference.planner.versions import Engine

MODELS = Path(__file__).resolve().parents[1] / "tests" / "data" / "planner" / "models.json"
NAMES = ("meta-llama/Llama-3.1-8B-Instruct", "deepseek-ai/DeepSeek-V3", "openai/gpt-oss-120b")
DIVISIONS = tuple(Parallel(tensor=tensor, pipeline=stages) for tensor in (1, 2, 4, 8) for stages in (1, 2, 4))
ROUNDS = 5


def main() -> None:
    models = json.loads(MODELS.read_text(encoding="utf-8"))
    for name in NAMES:
        times = sorted(_seconds(models[name]["config"]) for _ in range(ROUNDS))
        print(f"{name}: {1000 * times[ROUNDS // 2]:.1f} ms for {len(DIVISIONS)} divisions, facts included")


def _seconds(config: dict[str, object]) -> float:
    began = perf_counter()
    facts = model_facts(config)
    options = options_of(facts, Asked(max_model_len=8192), Engine(), 80 * GIB)
    for parallel in DIVISIONS:
        if not refusals(facts, parallel):
            start(facts, parallel, options, 80 * GIB)
    return perf_counter() - began


if __name__ == "__main__":
    main()
