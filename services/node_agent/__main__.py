"""`python -m services.node_agent`: the node agent alone."""

import sys

from libs.common.kit.runner import main
from services.node_agent.wiring import build

if __name__ == "__main__":
    sys.exit(main({"node_agent": build}))
