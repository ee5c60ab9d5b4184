"""AMD GPUs, from the kernel's own files."""

from collections.abc import Iterator
from pathlib import Path

from libs.common.contracts.node_registry import Gpu
from libs.hardware.pci import AMD
from libs.hardware.reading import mib, number, text

_NO_COMPUTE = "the compute driver (/dev/kfd) is missing, so nothing can run on it"


def read_amd(root: Path = Path("/")) -> tuple[Gpu, ...]:
    """GPUs that the driver `amdgpu` runs, in the order of their PCI addresses."""
    compute = (root / "dev/kfd").exists()
    names = _architectures(root)
    cards = sorted(_cards(root), key=lambda card: (card[0], card[1].name))
    return tuple(_gpu(index, address, device, names, compute) for index, (address, device) in enumerate(cards))


def _cards(root: Path) -> Iterator[tuple[str, Path]]:
    folder = root / "sys/class/drm"
    for card in folder.glob("card*") if folder.is_dir() else ():
        device = card / "device"
        numbered = card.name.removeprefix("card").isdecimal()
        if numbered and number(device / "vendor") == AMD and (device / "mem_info_vram_total").exists():
            yield _address(device), device


def _address(device: Path) -> str:
    for line in (text(device / "uevent") or "").splitlines():
        if line.startswith("PCI_SLOT_NAME="):
            return line.removeprefix("PCI_SLOT_NAME=")
    return device.resolve().name


def _gpu(index: int, address: str, device: Path, architectures: dict[int, str], compute: bool) -> Gpu:
    total, used = number(device / "mem_info_vram_total"), number(device / "mem_info_vram_used")
    busy = number(device / "gpu_busy_percent")
    return Gpu(
        uuid=_uuid(device, address),
        index=index,
        name=text(device / "product_name") or f"AMD GPU {(text(device / 'device') or 'unknown').removeprefix('0x')}",
        vendor="amd",
        vram_total_mb=mib(total),
        vram_used_mb=mib(used),
        vram_free_mb=None if total is None or used is None else mib(total - used),
        compute_capability=architectures.get(_location(address)),
        pci_address=address,
        temperature_celsius=_sensor(device, ("temp1_input",), 1000),
        power_watts=_sensor(device, ("power1_average", "power1_input"), 1_000_000),
        power_limit_watts=_sensor(device, ("power1_cap",), 1_000_000),
        utilization_ratio=None if busy is None else busy / 100,
        healthy=compute,
        problem=None if compute else _NO_COMPUTE,
    )


def _uuid(device: Path, address: str) -> str:
    """The number the card was born with; older cards have none and are known by their place."""
    unique = text(device / "unique_id")
    return f"GPU-{unique}" if unique else f"AMD-{address}"


def _sensor(device: Path, names: tuple[str, ...], unit: int) -> float | None:
    for sensor in sorted((device / "hwmon").glob("hwmon*")):
        for name in names:
            value = number(sensor / name)
            if value is not None:
                return value / unit
    return None


def _architectures(root: Path) -> dict[int, str]:
    """From the place on the bus to the instruction set, such as gfx942."""
    found: dict[int, str] = {}
    folder = root / "sys/class/kfd/kfd/topology/nodes"
    for node in sorted(folder.iterdir()) if folder.is_dir() else ():
        words = dict(line.partition(" ")[::2] for line in (text(node / "properties") or "").splitlines())
        version, place = words.get("gfx_target_version", ""), words.get("location_id", "")
        if version.isdecimal() and place.isdecimal() and int(version):
            major, minor, step = int(version) // 10000, int(version) // 100 % 100, int(version) % 100
            found[int(words.get("domain", "0")) << 16 | int(place)] = f"gfx{major}{minor:x}{step:x}"
    return found


def _location(address: str) -> int:
    """The bus, device and function of a PCI address as one number, the way the compute driver writes them."""
    try:
        domain, bus, rest = address.split(":")
        device, function = rest.split(".")
        return int(domain, 16) << 16 | int(bus, 16) << 8 | int(device, 16) << 3 | int(function, 16)
    except ValueError:
        return -1
