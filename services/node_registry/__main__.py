import sys

from libs.common.kit.runner import main
from services.node_registry.wiring import build

if __name__ == "__main__":
    sys.exit(main({"node_registry": build}))
