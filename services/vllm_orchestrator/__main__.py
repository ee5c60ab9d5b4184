"""`python -m services.vllm_orchestrator`: the orchestrator alone."""

import sys

from libs.common.kit.runner import main
from services.vllm_orchestrator.wiring import build

if __name__ == "__main__":
    sys.exit(main({"vllm_orchestrator": build}))
