"""`python -m services.benchmark_runner`: the benchmark runner alone."""

import sys

from libs.common.kit.runner import main
from services.benchmark_runner.wiring import build

if __name__ == "__main__":
    sys.exit(main({"benchmark_runner": build}))
