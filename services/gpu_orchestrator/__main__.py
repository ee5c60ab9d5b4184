import sys

from libs.common.kit.runner import main
from services.gpu_orchestrator.wiring import build

if __name__ == "__main__":
    sys.exit(main({"gpu_orchestrator": build}))
