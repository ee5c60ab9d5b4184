"""The GPUs that a model may be put on, and how they are connected."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU. `free` is what may be taken of it now, in bytes. `index` is its place in the order of the PCI bus."""

    uuid: str
    node_id: str
    total: int
    free: int
    name: str = ""
    capability: tuple[int, int] | None = None
    index: int = 0

    @property
    def is_part(self) -> bool:
        """A MIG device: a GPU with memory of its own that no other works with, since a process is shown only one.

        Source: NVIDIA's MIG user guide, "CUDA device enumeration".
        """
        return self.uuid.startswith("MIG-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine. `linked` are the pairs of its GPUs, by UUID, that NVLink connects. `ram` is free, in bytes.

    `address` and `interface` are where other nodes reach it; empty where that is not known.
    """

    node_id: str
    gpus: tuple[Gpu, ...] = ()
    linked: frozenset[frozenset[str]] = frozenset()
    ram: int = 0
    threads: int = 0
    address: str = ""
    interface: str = ""

    def islands(self) -> tuple[tuple[Gpu, ...], ...]:
        """Sets of GPUs that are all connected by NVLink; a GPU without a link is alone in its own."""
        near: dict[str, set[str]] = {gpu.uuid: set() for gpu in self.gpus}
        for one, other in (tuple(pair) for pair in self.linked if len(pair) == 2):
            near.setdefault(one, set()).add(other)
            near.setdefault(other, set()).add(one)
        found: list[list[Gpu]] = []
        for gpu in self.gpus:
            home = next((island for island in found if all(each.uuid in near[gpu.uuid] for each in island)), None)
            if home is None:
                found.append([gpu])
            else:
                home.append(gpu)
        return tuple(tuple(island) for island in found)


BANDWIDTH: Mapping[str, int] = {
    "B300": 8000,
    "GB300": 8000,
    "B200": 8000,
    "GB200": 8000,
    "H200": 4800,
    "GH200": 4000,
    "H100 NVL": 3938,
    "H100 PCIE": 2039,
    "H100": 3352,
    "H800": 3352,
    "H20": 4000,
    "A100 80GB PCIE": 1935,
    "A100-PCIE-40GB": 1555,
    "A100-SXM4-40GB": 1555,
    "A100": 2039,
    "A800": 2039,
    "A40": 696,
    "A30": 933,
    "A10G": 600,
    "A10": 600,
    "L40S": 864,
    "L40": 864,
    "L4": 300,
    "T4": 320,
    "V100": 900,
    "RTX PRO 6000": 1792,
    "RTX 6000 ADA": 960,
    "RTX A6000": 768,
    "RTX A5000": 768,
    "RTX A4000": 448,
    "RTX 5090": 1792,
    "RTX 5080": 960,
    "RTX 5070 TI": 896,
    "RTX 5070": 672,
    "RTX 4090": 1008,
    "RTX 4080 SUPER": 736,
    "RTX 4080": 717,
    "RTX 4070 TI": 504,
    "RTX 4070": 504,
    "RTX 4060 TI": 288,
    "RTX 4060": 272,
    "RTX 3090 TI": 1008,
    "RTX 3090": 936,
    "RTX 3080 TI": 912,
    "RTX 3080": 760,
    "RTX 3070": 448,
    "RTX 3060 TI": 448,
    "RTX 3060": 360,
    "RTX 2080 TI": 616,
    "MI300X": 5300,
    "MI325X": 6000,
    "MI250": 3277,
}
"""Memory bandwidth in 10^9 bytes per second by the part of a GPU's name that tells it. Source: makers' data sheets."""

MEMORY_SLICES: Mapping[str, int] = {"1": 1, "2": 2, "3": 4, "4": 4, "7": 8}
"""Eighths of a GPU's memory, and of its bandwidth, by the first figure of a MIG profile such as 3g.20gb.

Source: NVIDIA's MIG user guide, "Supported MIG profiles".
"""

_MIG = re.compile(r"\bMIG (\d)g\.")
_LONGEST_FIRST = sorted(BANDWIDTH, key=len, reverse=True)


@cache
def bandwidth(name: str) -> int | None:
    """Bytes per second of a GPU's memory; None for a name that is not in the table."""
    profile = _MIG.search(name)
    if profile is not None:
        whole = bandwidth(name[: profile.start()])
        return whole * MEMORY_SLICES.get(profile[1], 1) // 8 if whole is not None else None
    words = f" {name.upper().replace('NVIDIA', '').replace('GEFORCE', '')} ".replace("  ", " ")
    for part in _LONGEST_FIRST:
        place = words.find(part)
        if place > 0 and not words[place - 1].isalnum() and not words[place + len(part)].isalnum():
            return BANDWIDTH[part] * 10**9
    return None
