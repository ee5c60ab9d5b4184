"""Which display and compute devices are on the PCI bus: what there is, whether or not its driver works."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from libs.hardware.reading import number

NVIDIA = 0x10DE
AMD = 0x1002
_DISPLAY = 0x03
_ACCELERATOR = 0x12


@dataclass(frozen=True, slots=True)
class PciDevice:
    address: str
    vendor: int


class PciBus:
    """Looked at often: devices are read again only when another one stands at an address, or none."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._folder = root / "sys/bus/pci/devices"
        self._plugged: Sequence[tuple[str, int]] = ()
        self._graphics: tuple[PciDevice, ...] = ()

    def graphics_devices(self) -> tuple[PciDevice, ...]:
        """Display controllers and processing accelerators, by address. None where the system does not tell."""
        plugged = self._look()
        if plugged != self._plugged:
            self._plugged = plugged
            self._graphics = tuple(found for address, _ in plugged if (found := self._graphics_device(address)))
        return self._graphics

    def _look(self) -> Sequence[tuple[str, int]]:
        """Addresses, each with a number that the kernel gives anew when a device is plugged in."""
        try:
            with os.scandir(self._folder) as found:
                return sorted((device.name, device.inode()) for device in found)
        except OSError:
            return ()

    def _graphics_device(self, address: str) -> PciDevice | None:
        kind, vendor = number(self._folder / address / "class"), number(self._folder / address / "vendor")
        if kind is None or vendor is None or kind >> 16 not in (_DISPLAY, _ACCELERATOR):
            return None
        return PciDevice(address, vendor)
