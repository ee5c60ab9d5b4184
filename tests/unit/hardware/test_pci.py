"""The kernel's list of devices, on a made tree."""

from pathlib import Path

from libs.hardware.pci import AMD, NVIDIA, PciBus, PciDevice

ADDRESS = "0000:01:00.0"


def device(folder: Path, vendor: int, kind: int = 0x030200) -> Path:
    folder.mkdir(parents=True)
    (folder / "class").write_text(f"{kind:#08x}\n")
    (folder / "vendor").write_text(f"{vendor:#06x}\n")
    return folder


def test_displays_and_accelerators_are_told_by_address_and_nothing_else(tmp_path: Path):
    devices = tmp_path / "sys/bus/pci/devices"
    device(devices / "0000:02:00.0", AMD, kind=0x120000)
    device(devices / ADDRESS, NVIDIA)
    device(devices / "0000:00:1f.0", 0x8086, kind=0x060100)

    assert PciBus(tmp_path).graphics_devices() == (PciDevice(ADDRESS, NVIDIA), PciDevice("0000:02:00.0", AMD))


def test_another_device_at_an_address_is_seen(tmp_path: Path):
    at = device(tmp_path / "sys/bus/pci/devices" / ADDRESS, NVIDIA)
    bus = PciBus(tmp_path)
    assert bus.graphics_devices() == (PciDevice(ADDRESS, NVIDIA),)

    other = device(tmp_path / "other", AMD)
    at.rename(tmp_path / "gone")
    other.rename(at)

    assert bus.graphics_devices() == (PciDevice(ADDRESS, AMD),)


def test_a_system_without_the_list_has_no_devices(tmp_path: Path):
    assert PciBus(tmp_path).graphics_devices() == ()
