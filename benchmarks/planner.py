"""`python -m benchmarks.planner [RUNS]`: how long it takes to plan one model over 100 nodes of eight GPUs.

Facts are read from the configuration anew in every run. Once all GPUs are free, once others use each differently.
Prints each figure beside its limit; exits 1 when one is missed.
"""

import json
import os
import random
import statistics
import sys
from itertools import combinations
from pathlib import Path
from time import perf_counter

from libs.inference.planner.architectures import model_facts
from libs.inference.planner.choice import choose
from libs.inference.planner.devices import Gpu, Node
from libs.inference.planner.goal import Goal
from libs.inference.planner.memory import GIB
from libs.inference.planner.options import Asked
from libs.inference.planner.versions import Engine

MODELS = Path(__file__).resolve().parents[1] / "tests" / "data" / "planner" / "models.json"
NAMES = (
    "meta-llama/Llama-3.1-8B-Instruct",
    "meta-llama/Llama-3.1-70B-Instruct",
    "openai/gpt-oss-120b",
    "deepseek-ai/DeepSeek-V3",
)
NODES, GPUS_PER_NODE = 100, 8
LIMIT_MS = 50.0


def machines(*, used: bool) -> list[Node]:
    """Nodes of H100s that NVLink connects; with `used`, others take up to 30 GiB of each GPU."""
    chance = random.Random(1)
    found = []
    for place in range(NODES):
        gpus = tuple(
            Gpu(
                uuid=f"GPU-{place}-{index}",
                node_id=f"node-{place:03}",
                total=80 * GIB,
                free=80 * GIB - (chance.randrange(30 * GIB) if used else 0),
                name="NVIDIA H100 80GB HBM3",
                capability=(9, 0),
                index=index,
            )
            for index in range(GPUS_PER_NODE)
        )
        links = frozenset(frozenset((one.uuid, other.uuid)) for one, other in combinations(gpus, 2))
        found.append(Node(node_id=f"node-{place:03}", gpus=gpus, linked=links))
    return found


def milliseconds(config: dict[str, object], nodes: list[Node]) -> float:
    began = perf_counter()
    choose(model_facts(config), Asked(max_model_len=8192), Engine(), nodes, Goal(concurrency=8))
    return 1000 * (perf_counter() - began)


def main() -> int:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    models, missed = json.loads(MODELS.read_text(encoding="utf-8")), 0
    print(f"load average {os.getloadavg()[0]:.2f}, {runs} runs, {NODES} nodes of {GPUS_PER_NODE} GPUs")
    for used in (False, True):
        nodes = machines(used=used)
        for name in NAMES:
            values = [milliseconds(models[name]["config"], nodes) for _ in range(runs)]
            median = statistics.median(values)
            missed += median > LIMIT_MS
            spread = f"({min(values):.1f} … {max(values):.1f})"
            state = "used" if used else "free"
            print(f"{name:<34} {state} {median:6.1f} ms {spread}  limit {LIMIT_MS:g}, ratio {median / LIMIT_MS:.2f}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
