"""Which display and compute devices are on the PCI bus: what there is, whether or not its driver works."""

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


def graphics_devices(root: Path = Path("/")) -> tuple[PciDevice, ...]:
    """Display controllers and processing accelerators, by address. None where the system does not tell."""
    folder = root / "sys/bus/pci/devices"
    found: list[PciDevice] = []
    for device in sorted(folder.iterdir()) if folder.is_dir() else ():
        kind, vendor = number(device / "class"), number(device / "vendor")
        if kind is not None and vendor is not None and kind >> 16 in (_DISPLAY, _ACCELERATOR):
            found.append(PciDevice(device.name, vendor))
    return tuple(found)
