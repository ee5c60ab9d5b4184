"""AMD GPUs, on recorded trees of the kernel's files."""

from pathlib import Path
from typing import Any

import pytest

from libs.common.contracts.node_registry import Platform
from libs.hardware.amd import read_amd
from libs.hardware.inspector import platform_of

GIB = 1 << 30


def card(root: Path, number: int, address: str, **files: Any) -> Path:
    device = root / f"sys/devices/pci0000:00/{address}"
    (device / "hwmon/hwmon3").mkdir(parents=True)
    usual = {
        "vendor": "0x1002",
        "device": "0x744c",
        "uevent": f"DRIVER=amdgpu\nPCI_SLOT_NAME={address}\nPCI_ID=1002:744C",
        "mem_info_vram_total": 24 * GIB,
        "mem_info_vram_used": 2 * GIB,
        "gpu_busy_percent": 37,
        "unique_id": f"7a5f00000000000{number}",
        "hwmon/hwmon3/temp1_input": 54000,
        "hwmon/hwmon3/power1_average": 89_000_000,
        "hwmon/hwmon3/power1_cap": 303_000_000,
    }
    for name, content in (usual | files).items():
        if content is not None:
            (device / name).write_text(f"{content}\n")
    link = root / f"sys/class/drm/card{number}"
    link.mkdir(parents=True)
    (link / "device").symlink_to(device)
    return device


def compute(root: Path, node: int, location: int, version: int) -> None:
    (root / "dev").mkdir(exist_ok=True)
    (root / "dev/kfd").touch()
    folder = root / f"sys/class/kfd/kfd/topology/nodes/{node}"
    folder.mkdir(parents=True)
    (folder / "properties").write_text(
        f"simd_count 192\ngfx_target_version {version}\nlocation_id {location}\ndomain 0\n"
    )


def test_a_card_is_seen_as_the_kernel_tells_it(tmp_path: Path):
    card(tmp_path, 1, "0000:03:00.0", product_name="AMD Radeon RX 7900 XTX")
    compute(tmp_path, 1, 0x0300, 110000)

    (gpu,) = read_amd(tmp_path)

    assert (gpu.name, gpu.vendor, gpu.uuid) == ("AMD Radeon RX 7900 XTX", "amd", "GPU-7a5f000000000001")
    assert (gpu.vram_total_mb, gpu.vram_used_mb, gpu.vram_free_mb) == (24576, 2048, 22528)
    assert (gpu.temperature_celsius, gpu.power_watts, gpu.power_limit_watts) == (54.0, 89.0, 303.0)
    assert (gpu.utilization_ratio, gpu.pci_address, gpu.compute_capability) == (0.37, "0000:03:00.0", "gfx1100")
    assert gpu.healthy
    assert platform_of([gpu]) is Platform.ROCM


@pytest.mark.parametrize(("version", "name"), [(90402, "gfx942"), (90010, "gfx90a"), (100300, "gfx1030"), (0, None)])
def test_the_instruction_set_is_named_as_the_vendor_does(tmp_path: Path, version: int, name: str | None):
    card(tmp_path, 0, "0000:c1:00.0")
    compute(tmp_path, 1, 0xC100, version)

    assert read_amd(tmp_path)[0].compute_capability == name


def test_what_a_card_does_not_tell_is_unknown(tmp_path: Path):
    silent = dict.fromkeys(
        (
            *("mem_info_vram_used", "gpu_busy_percent", "unique_id", "hwmon/hwmon3/temp1_input"),
            *("hwmon/hwmon3/power1_average", "hwmon/hwmon3/power1_cap"),
        )
    )
    card(tmp_path, 0, "0000:03:00.0", **silent)
    compute(tmp_path, 1, 1, 1)

    (gpu,) = read_amd(tmp_path)

    assert (gpu.name, gpu.uuid) == ("AMD GPU 744c", "AMD-0000:03:00.0")
    assert (gpu.vram_free_mb, gpu.utilization_ratio, gpu.temperature_celsius, gpu.power_watts) == (None,) * 4


def test_without_the_compute_driver_nothing_can_run_on_it(tmp_path: Path):
    card(tmp_path, 0, "0000:03:00.0")

    (gpu,) = read_amd(tmp_path)

    assert not gpu.healthy
    assert "/dev/kfd" in (gpu.problem or "")
    assert platform_of([gpu]) is Platform.CPU_ONLY


def test_cards_are_numbered_by_their_place_and_others_are_left_out(tmp_path: Path):
    card(tmp_path, 0, "0000:0b:00.0")
    card(tmp_path, 1, "0000:03:00.0")
    card(tmp_path, 2, "0000:01:00.0", vendor="0x8086")
    (tmp_path / "sys/class/drm/card0-DP-1").mkdir()

    assert [(gpu.index, gpu.pci_address) for gpu in read_amd(tmp_path)] == [(0, "0000:03:00.0"), (1, "0000:0b:00.0")]


def test_a_machine_without_graphics_has_none(tmp_path: Path):
    assert read_amd(tmp_path) == ()
