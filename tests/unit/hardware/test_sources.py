"""Each source of an inventory, and what its failure costs."""

import sys
from pathlib import Path

import pytest

from libs.common.contracts.node_registry import Gpu, Platform
from libs.common.errors import TimedOut, Unavailable
from libs.hardware import amd_probe, host
from libs.hardware.apple import parse_profile
from libs.hardware.cpu import CpuIdentifier, Identity
from libs.hardware.inspector import Inspector
from libs.hardware.nvml_helper import NvmlHelper

SAYS = (sys.executable, "-c", 'print(\'{"model": "Test CPU", "flags": ["avx2"]}\')')


def counting(folder: Path) -> tuple[str, ...]:
    """A program that identifies the processor and leaves a line each time."""
    return (sys.executable, "-c", f"open({str(folder / 'runs')!r}, 'a').write('x'); {SAYS[2]}")


async def test_the_processor_is_identified_once_and_remembered(tmp_path: Path):
    for _ in range(2):
        identifier = CpuIdentifier(tmp_path / "kept", program=counting(tmp_path))
        assert await identifier.identity(seconds=20) == Identity("Test CPU", ("avx2",))
        assert await identifier.identity(seconds=20) == Identity("Test CPU", ("avx2",))

    assert (tmp_path / "runs").read_text() == "x"


async def test_another_kernel_start_is_another_question(tmp_path: Path):
    boot = tmp_path / "proc/sys/kernel/random/boot_id"
    boot.parent.mkdir(parents=True)
    for name in ("one", "two"):
        boot.write_text(name)
        await CpuIdentifier(tmp_path / "kept", program=counting(tmp_path), root=tmp_path).identity(seconds=20)

    assert (tmp_path / "runs").read_text() == "xx"
    assert len(list((tmp_path / "kept").iterdir())) == 1


async def test_a_slow_identification_does_not_keep_anybody_waiting(tmp_path: Path):
    slow = CpuIdentifier(tmp_path, program=(sys.executable, "-c", "import time; time.sleep(60)"))
    try:
        with pytest.raises(TimedOut):
            await slow.identity(seconds=0.05)
    finally:
        await slow.close()


@pytest.mark.parametrize("script", ["print('[')", "print('[1]')", "raise SystemExit(1)", "print('{\"model\": 1}')"])
async def test_an_identification_that_fails_is_told_and_tried_again(tmp_path: Path, script: str):
    broken = CpuIdentifier(tmp_path, program=(sys.executable, "-c", script))

    for _ in range(2):
        with pytest.raises(Unavailable):
            await broken.identity(seconds=20)


async def test_a_damaged_memory_of_the_processor_is_made_anew(tmp_path: Path):
    await CpuIdentifier(tmp_path, program=SAYS).identity(seconds=20)
    next(tmp_path.glob("cpu-*.json")).write_text("{")

    assert (await CpuIdentifier(tmp_path, program=SAYS).identity(seconds=20)).model == "Test CPU"


async def test_this_machine_is_seen_as_the_kernel_tells_it(tmp_path: Path):
    looking = Inspector(folder=tmp_path, disks=[tmp_path / "not/made/yet"], helper=_without_nvml())
    try:
        inventory = await looking.inventory()
        pulse = await looking.pulse(threads=2)
    finally:
        await looking.close()

    told = int(Path("/proc/meminfo").read_text().split()[1]) // 1024
    assert inventory.memory.total_mb is not None
    assert inventory.memory.total_mb <= told
    assert inventory.memory.total_mb == (inventory.memory.limit_mb or told)
    assert inventory.cpu.threads
    assert inventory.disks[0].path.endswith("not/made/yet")
    assert 0 < inventory.disks[0].free_mb <= inventory.disks[0].total_mb
    assert pulse.load_ratio is not None


async def test_a_source_that_breaks_costs_its_field_and_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> None:
        raise RuntimeError("no such thing today")

    monkeypatch.setattr(amd_probe, "read_amd", broken)
    monkeypatch.setattr(host, "read_network", broken)
    looking = Inspector(folder=tmp_path, helper=_without_nvml())
    try:
        inventory = await looking.inventory()
    finally:
        await looking.close()

    assert {(each.source, each.message) for each in inventory.problems} >= {
        ("amd", "no such thing today"),
        ("network", "no such thing today"),
    }
    assert inventory.memory.total_mb
    assert inventory.platform is Platform.CPU_ONLY


def test_apple_chips_use_the_machines_memory():
    told = {
        "SPHardwareDataType": [{"platform_UUID": "ABC", "chip_type": "Apple M3 Max"}],
        "SPDisplaysDataType": [
            {"sppci_model": "Apple M3 Max", "spdisplays_vendor": "sppci_vendor_Apple", "sppci_cores": "40"},
            {"_name": "a display"},
        ],
    }

    assert parse_profile(told) == (
        Gpu(uuid="APPLE-ABC-0", index=0, name="Apple M3 Max", vendor="apple", unified_memory=True),
    )


def test_the_system_is_named_as_it_names_itself(tmp_path: Path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text('NAME=x\nPRETTY_NAME="Test Linux 1"\n')

    assert host.operating_system(tmp_path).startswith("Test Linux 1, ")


@pytest.mark.parametrize(
    ("file", "content", "inside"),
    [
        (".dockerenv", "", True),
        ("run/.containerenv", "", True),
        ("proc/1/cgroup", "0::/kubepods/pod1", True),
        ("proc/1/cgroup", "0::/init.scope", False),
    ],
)
def test_a_container_is_noticed(tmp_path: Path, file: str, content: str, inside: bool):
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)

    assert host.in_container(tmp_path) is inside


def _without_nvml() -> NvmlHelper:
    return NvmlHelper(environment={}, answer_seconds=20)
