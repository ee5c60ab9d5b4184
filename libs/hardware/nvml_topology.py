"""How the NVIDIA GPUs of a machine are connected. Used in the process that talks to NVML."""

from collections import Counter
from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any

PATHS = {0: "INTERNAL", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}
"""NVML's levels, in the words of `nvidia-smi topo -m`."""
_SWITCH = "switch"
_SWITCH_TYPE = 2

Ask = Callable[..., Any]


def links(nvml: Any, identities: Mapping[int, Mapping[str, Any]], ask: Ask) -> list[dict[str, Any]]:
    """One entry for each pair of GPUs that answer. It does not change while the driver runs."""
    handles = {index: ask("topology", nvml.nvmlDeviceGetHandleByIndex, index) for index in identities}
    by_address = {identity["pci_address"]: index for index, identity in identities.items()}
    ends = {index: _ends(nvml, handle, by_address, ask) for index, handle in handles.items() if handle is not None}
    return [
        {
            "first": identities[one]["uuid"],
            "second": identities[other]["uuid"],
            "path": PATHS.get(ask("topology", nvml.nvmlDeviceGetTopologyCommonAncestor, handles[one], handles[other])),
            "nvlinks": ends[one][other] + min(ends[one][_SWITCH], ends[other][_SWITCH]),
            "peer_access": _peer_access(nvml, handles[one], handles[other], ask),
        }
        for one, other in combinations(sorted(ends), 2)
    ]


def _ends(nvml: Any, handle: Any, by_address: Mapping[str | None, int], ask: Ask) -> Counter[int | str]:
    """How many NVLinks lead to each other GPU, and to a switch."""
    found: Counter[int | str] = Counter()
    for link in range(nvml.NVML_NVLINK_MAX_LINKS):
        if ask("topology", _active, nvml, handle, link) is not True:
            continue
        if ask("topology", nvml.nvmlDeviceGetNvLinkRemoteDeviceType, handle, link) == _SWITCH_TYPE:
            found[_SWITCH] += 1
            continue
        remote = ask("topology", nvml.nvmlDeviceGetNvLinkRemotePciInfo, handle, link)
        other = by_address.get(pci_address(remote.busId)) if remote is not None else None
        if other is not None:
            found[other] += 1
    return found


def _active(nvml: Any, handle: Any, link: int) -> bool:
    """GPUs have different numbers of links: one that is not there is no fault."""
    try:
        return bool(nvml.nvmlDeviceGetNvLinkState(handle, link))
    except nvml.NVMLError_InvalidArgument:
        return False


def _peer_access(nvml: Any, one: Any, other: Any, ask: Ask) -> bool | None:
    status = ask("topology", nvml.nvmlDeviceGetP2PStatus, one, other, nvml.NVML_P2P_CAPS_INDEX_NVLINK)
    told = getattr(status, "value", status)
    return None if told is None else told == nvml.NVML_P2P_STATUS_OK


def pci_address(bus: str | bytes) -> str:
    """As the kernel writes it: four digits of domain where that is enough, small letters."""
    address = (bus.decode() if isinstance(bus, bytes) else bus).lower()
    return address[4:] if address.startswith("0000") and len(address) == 16 else address
