"""Apple GPUs, as the system's own profiler tells them."""

import json
import subprocess
from collections.abc import Mapping
from typing import Any

from libs.common.contracts.node_registry import Gpu
from libs.common.errors import Unavailable

PROFILER = ("/usr/sbin/system_profiler", "SPHardwareDataType", "SPDisplaysDataType", "-json")
SECONDS = 10.0


def read_apple() -> tuple[Gpu, ...]:
    """Raises `Unavailable` when the profiler gives no answer that can be read."""
    try:
        told = subprocess.run(PROFILER, capture_output=True, timeout=SECONDS, check=True, start_new_session=True)
        return parse_profile(json.loads(told.stdout))
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError) as error:
        raise Unavailable(f"system_profiler gave no answer that can be read: {error}") from None


def parse_profile(told: Mapping[str, Any]) -> tuple[Gpu, ...]:
    """Chips with built-in GPUs use the machine's memory, so they have no VRAM of their own."""
    machine: Mapping[str, Any] = next(iter(told.get("SPHardwareDataType", ())), {})
    displays = [each for each in told.get("SPDisplaysDataType", ()) if "sppci_model" in each]
    owner = machine.get("platform_UUID") or machine.get("serial_number") or "this-machine"
    return tuple(
        Gpu(
            uuid=f"APPLE-{owner}-{index}",
            index=index,
            name=str(each["sppci_model"]),
            vendor="apple",
            unified_memory=True,
        )
        for index, each in enumerate(displays)
        if "apple" in str(each.get("spdisplays_vendor", "")).lower()
    )
