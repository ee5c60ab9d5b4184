"""All services in one process, or those that are named: `python -m services [NAME …]`."""

import sys

from libs.common.kit.runner import main_of
from services.suite import SUITE

if __name__ == "__main__":
    sys.exit(main_of(SUITE, sys.argv[1:]))
