"""What the detector says of NVIDIA GPUs beside what `nvidia-smi` says, for a person with a real one at hand."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from libs.common.contracts.node_registry import Gpu

SAME = {
    "name": "name",
    "pci.bus_id": "pci_address",
    "compute_cap": "compute_capability",
    "memory.total": "vram_total_mb",
    "memory.reserved": "vram_reserved_mb",
    "power.limit": "power_limit_watts",
    "clocks.max.sm": "clock_max_mhz",
}
"""Must agree."""
MOVING = {
    "memory.used": "vram_used_mb",
    "memory.free": "vram_free_mb",
    "temperature.gpu": "temperature_celsius",
    "power.draw": "power_watts",
}
"""May differ a little: the two look at different moments."""
FIELDS = ("uuid", *SAME, *MOVING)
COMMAND = ("nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits")


@dataclass(frozen=True, slots=True)
class Line:
    gpu: str
    field: str
    ours: str
    theirs: str
    agrees: bool | None
    """None: it moves, so it cannot be said."""


def compare(gpus: Sequence[Gpu], told: str) -> Iterator[Line]:
    """`told`: what `COMMAND` printed."""
    ours = {gpu.uuid: gpu for gpu in gpus if gpu.vendor == "nvidia"}
    theirs = {row["uuid"]: row for row in map(_row, told.strip().splitlines())}
    for uuid in (*theirs, *(uuid for uuid in ours if uuid not in theirs)):
        if uuid not in ours or uuid not in theirs:
            yield Line(uuid, "uuid", "seen" if uuid in ours else "-", "seen" if uuid in theirs else "-", False)
            continue
        for field, ours_name in (SAME | MOVING).items():
            value = getattr(ours[uuid], ours_name)
            agrees = None if field in MOVING else _plain(value) == _plain(theirs[uuid][field])
            yield Line(uuid, field, "null" if value is None else str(value), theirs[uuid][field], agrees)


def _row(line: str) -> dict[str, str]:
    return dict(zip(FIELDS, (word.strip() for word in line.split(",")), strict=False))


def _plain(value: object) -> str:
    """The same in both spellings: numbers without trailing zeros, addresses in small letters, unknown as nothing."""
    words = "" if value is None else str(value).lower()
    if words in ("[n/a]", "[not supported]", "n/a"):
        return ""
    if words.count(":") == 2 and len(words) == len("00000000:00:00.0"):
        return words[4:]
    try:
        return f"{float(words):g}"
    except ValueError:
        return words
