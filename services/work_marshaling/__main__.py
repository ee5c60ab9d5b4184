import sys

from libs.common.kit.runner import main
from services.work_marshaling.wiring import build

if __name__ == "__main__":
    sys.exit(main({"work_marshaling": build}))
