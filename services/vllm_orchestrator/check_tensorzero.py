"""Starts TensorZero's gateway inside this process on the files that an argument names, and tells how that went.

A process of its own: the gateway is large, writes to the terminal, and stays. Ends with 0 where the configuration is
good, with 1 and a sentence where it is not, with 3 where the gateway is not installed.
"""

import sys

from services.vllm_orchestrator.model import GATEWAY_MISSING, GATEWAY_REFUSES, GATEWAY_SAID, GATEWAY_STARTS


def main(pattern: str) -> int:
    try:
        import tensorzero
    except ImportError:
        return GATEWAY_MISSING
    try:
        tensorzero.TensorZeroGateway.build_embedded(config_file=pattern).close()
    except tensorzero.TensorZeroInternalError as error:
        sys.stdout.write(f"{GATEWAY_SAID}{error}")
        # What comes after the configuration was read is about databases, which are not ours to try.
        return GATEWAY_REFUSES if "ConfigParsing" in str(error) else GATEWAY_STARTS
    return GATEWAY_STARTS


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
