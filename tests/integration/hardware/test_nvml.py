"""NVIDIA GPUs, seen through the unmodified nvidia-ml-py from a simulated driver."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from libs.common.contracts.node_registry import Tier
from libs.common.errors import TimedOut, Unavailable
from libs.hardware import nvidia
from libs.hardware.inspector import Inspector
from libs.hardware.nvidia import NvidiaProbe
from libs.hardware.nvidia_answer import Nvidia
from libs.hardware.nvml_helper import NvmlHelper
from libs.hardware.tiers import classify
from tests.nvml import machines
from tests.nvml.machines import Machine, uuid
from tests.nvml.simulator import Simulator


@asynccontextmanager
async def probing(
    simulator: Simulator, *, root: Path = Path("/"), seconds: float = 5.0
) -> AsyncIterator[tuple[NvidiaProbe, NvmlHelper]]:
    helper = NvmlHelper(environment=simulator.environment, answer_seconds=seconds)
    probe = NvidiaProbe(helper, root=root)
    try:
        yield probe, helper
    finally:
        await probe.close()


async def read(simulator: Simulator, machine: Machine) -> Nvidia:
    simulator.show(machine)
    async with probing(simulator) as (probe, _):
        return await probe.read()


@pytest.mark.parametrize(
    ("machine", "tier"),
    [
        (machines.H100_X8, Tier.AI_FACTORY),
        (machines.A100_X4, Tier.AI_FACTORY),
        (machines.GH200, Tier.AI_FACTORY),
        (machines.L40S_X4, Tier.AI_FACTORY),
        (machines.BRIDGED_3090, Tier.GPU_PEER),
        (machines.MIXED, Tier.GPU_PEER),
        (machines.T4, Tier.GPU_INFRA),
    ],
)
async def test_a_machine_is_seen_as_it_is_described(simulator: Simulator, tmp_path: Path, machine: Machine, tier: Tier):
    simulator.show(machine)
    inspector = Inspector(folder=tmp_path, helper=NvmlHelper(environment=simulator.environment, answer_seconds=5.0))
    inventory = await inspector.inventory()
    await inspector.close()

    seen = [(gpu.name, gpu.vram_total_mb, gpu.vram_used_mb, gpu.vram_reserved_mb) for gpu in inventory.gpus]
    assert seen == [(gpu.name, *gpu.memory) for gpu in machine.gpus]
    for gpu, (number, described) in zip(inventory.gpus, enumerate(machine.gpus), strict=True):
        total, used, reserved = described.memory
        assert gpu.vram_free_mb == total - used - reserved
        assert gpu.uuid == uuid(number)
        assert gpu.pci_address == machines.pci(number)[4:].lower()
        assert gpu.compute_capability == "{}.{}".format(*described.capability)
        assert gpu.utilization_ratio == described.load / 100
    assert inventory.platform == "CUDA"
    assert (inventory.driver_version, inventory.cuda_version) == ("570.124.06", "12.8")
    assert classify(inventory).tier is tier


async def test_a_gpu_that_shares_the_machines_memory_tells_no_vram(simulator: Simulator):
    found = await read(simulator, machines.GB10)

    assert found.gpus[0].unified_memory
    assert (found.gpus[0].vram_total_mb, found.gpus[0].vram_free_mb) == (None, None)
    assert found.problems == ()


async def test_what_a_driver_does_not_support_is_unknown_and_no_problem(simulator: Simulator):
    found = await read(simulator, machines.NOTHING_SUPPORTED)

    gpu = found.gpus[0]
    assert gpu.healthy
    assert (gpu.vram_total_mb, gpu.temperature_celsius, gpu.compute_capability, gpu.pci_address) == (None,) * 4
    assert not gpu.unified_memory
    assert found.processes == {}
    assert found.problems == ()


async def test_the_first_version_of_memory_serves_where_the_second_is_missing(simulator: Simulator):
    found = await read(simulator, machines.T4.changed(0, unsupported=("MemoryInfo_v2",)))

    gpu = found.gpus[0]
    assert (gpu.vram_total_mb, gpu.vram_used_mb, gpu.vram_free_mb) == (15360, 448, 14912)
    assert gpu.vram_reserved_mb is None


async def test_who_uses_a_gpu_is_told(simulator: Simulator):
    machine = machines.T4.changed(0, processes=((11, 500, "c"), (12, -1, "g")))

    found = await read(simulator, machine)

    processes = {each.pid: (each.kind, each.used_mb) for each in found.processes[uuid(0)]}
    assert processes == {11: ("compute", 500), 12: ("graphics", None)}


async def test_a_process_is_named_at_once_and_its_name_is_read_again_after_a_while(
    simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def call(pid: int, name: str) -> None:
        (tmp_path / f"proc/{pid}").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"proc/{pid}/comm").write_text(name)

    async def names(probe: NvidiaProbe, *pids: int) -> list[str | None]:
        simulator.show(machines.T4.changed(0, processes=tuple((pid, 10, "c") for pid in pids)))
        return [process.name for process in (await probe.read()).processes[uuid(0)]]

    call(7, "old")
    async with probing(simulator, root=tmp_path) as (probe, _):
        told = [await names(probe, 7)]
        call(7, "new")
        call(8, "another")
        told.append(await names(probe, 7, 8))
        monkeypatch.setattr(nvidia, "NAMES_SECONDS", 0)
        told.append(await names(probe, 7, 8))

    assert told == [["old"], ["old", "another"], ["new", "another"]]


async def test_a_gpu_that_fills_up_is_seen_at_once(simulator: Simulator):
    simulator.show(machines.T4)
    async with probing(simulator) as (probe, _):
        await probe.read()
        simulator.show(machines.T4.changed(0, memory=(15360, 9000, 448)))
        found = await probe.read()

    assert found.gpus[0].vram_used_mb == 9000


async def test_a_gpu_that_fell_off_the_bus_keeps_its_name_and_says_why(simulator: Simulator):
    simulator.show(machines.A100_X4)
    async with probing(simulator) as (probe, _):
        await probe.read()
        simulator.show(machines.A100_X4.changed(2, lost=True))
        found = await probe.read()
        simulator.show(machines.A100_X4)
        mended = await probe.read()

    assert [gpu.healthy for gpu in found.gpus] == [True, True, False, True]
    assert (found.gpus[2].uuid, found.gpus[2].problem) == (uuid(2), "GPU is lost")
    assert found.gpus[2].vram_free_mb is None
    assert all(gpu.healthy for gpu in mended.gpus)


async def test_a_fatal_xid_makes_a_gpu_unhealthy(simulator: Simulator):
    simulator.show(machines.A100_X4)
    async with probing(simulator) as (probe, _):
        await probe.read()
        simulator.show(machines.A100_X4.changed(1, xid=(79, 1)))
        found = await probe.read()
        simulator.show(machines.A100_X4.changed(1, xid=(79, 1), lost=True))
        later = await probe.read()

    assert [gpu.healthy for gpu in found.gpus] == [True, False, True, True]
    assert found.gpus[1].problem == later.gpus[1].problem == "Xid 79: GPU has fallen off the bus"


@pytest.mark.parametrize(
    ("machine", "pair", "link"),
    [
        (machines.H100_X8, (0, 3), ("NODE", 18, True)),
        (machines.H100_X8, (0, 4), ("SYS", 18, True)),
        (machines.A100_X4, (1, 3), ("NODE", 4, True)),
        (machines.BRIDGED_3090, (0, 1), ("PHB", 4, True)),
        (machines.MIXED, (0, 1), ("PHB", 0, False)),
        (machines.L40S_X4, (0, 1), ("PXB", 0, False)),
        (machines.L40S_X4, (1, 2), ("SYS", 0, False)),
    ],
)
async def test_how_gpus_are_connected_is_found(
    simulator: Simulator, machine: Machine, pair: tuple[int, int], link: tuple[str, int, bool]
):
    found = await read(simulator, machine)

    count = len(machine.gpus)
    links = {(each.first, each.second): (each.path, each.nvlinks, each.peer_access) for each in found.links}
    assert len(links) == count * (count - 1) // 2
    assert links[uuid(pair[0]), uuid(pair[1])] == link
    assert found.problems == ()


async def test_a_gpu_that_is_divided_is_judged_by_its_largest_part(simulator: Simulator, tmp_path: Path):
    simulator.show(machines.A100_MIG)
    inspector = Inspector(folder=tmp_path, helper=NvmlHelper(environment=simulator.environment, answer_seconds=5.0))
    inventory = await inspector.inventory()
    await inspector.close()

    parts = [(part.name, part.vram_total_mb, part.vram_free_mb) for part in inventory.gpus[0].mig_devices]
    assert parts == [
        ("NVIDIA A100-SXM4-80GB MIG 4g.40gb", 40448, 40448),
        ("NVIDIA A100-SXM4-80GB MIG 2g.20gb", 20096, 19996),
    ]
    assert inventory.gpus[0].utilization_ratio is None
    verdict = classify(inventory)
    assert verdict.tier is Tier.AI_FACTORY
    assert "40448 MiB" in verdict.reasons[0]


async def test_errors_of_its_memory_are_told(simulator: Simulator):
    found = await read(simulator, machines.T4.changed(0, ecc=(1, 3), retired=2))

    gpu = found.gpus[0]
    assert (gpu.ecc_enabled, gpu.ecc_uncorrected_errors, gpu.retired_pages, gpu.healthy) == (True, 3, 2, True)


async def test_a_gpu_whose_memory_is_worn_out_is_unhealthy(simulator: Simulator):
    found = await read(simulator, machines.A100_X4.changed(1, remap_failed=1))

    assert [gpu.healthy for gpu in found.gpus] == [True, False, True, True]
    assert "worn out" in (found.gpus[1].problem or "")


async def test_a_gpu_that_is_lost_from_the_start_hides_only_itself(simulator: Simulator):
    simulator.show(machines.A100_X4.changed(0, lost=True))
    async with probing(simulator) as (probe, _):
        found = await probe.read()
        simulator.show(machines.A100_X4)
        mended = await probe.read()

    assert [gpu.uuid for gpu in found.gpus] == [uuid(1), uuid(2), uuid(3)]
    assert "lost" in found.problems[0].message
    assert len(found.links) == 3
    assert len(mended.gpus) == 4
    assert len(mended.links) == 6


async def test_an_xid_of_a_faulty_program_leaves_the_gpu_healthy(simulator: Simulator):
    simulator.show(machines.T4)
    async with probing(simulator) as (probe, _):
        await probe.read()
        simulator.show(machines.T4.changed(0, xid=(13, 1)))
        found = await probe.read()

    assert found.gpus[0].healthy


@pytest.mark.parametrize(
    ("machine", "words"),
    [(machines.DRIVER_NOT_LOADED, "Driver Not Loaded"), (machines.VERSION_MISMATCH, "version mismatch")],
)
async def test_a_driver_that_does_not_start_is_told(simulator: Simulator, machine: Machine, words: str):
    found = await read(simulator, machine)

    assert found.gpus == ()
    assert words in found.problems[0].message


async def test_without_the_library_there_is_no_gpu_and_no_problem(tmp_path: Path):
    probe = NvidiaProbe(NvmlHelper(environment={}, answer_seconds=5.0), root=tmp_path)
    try:
        found = await probe.read()
    finally:
        await probe.close()

    assert (found.gpus, found.problems) == ((), ())


async def test_a_device_without_its_driver_is_told(tmp_path: Path):
    _plug(tmp_path, "0000:01:00.0")
    probe = NvidiaProbe(NvmlHelper(environment={}, answer_seconds=5.0), root=tmp_path)
    try:
        found = await probe.read()
    finally:
        await probe.close()

    assert found.problems[0].message == (
        "1 NVIDIA device(s) on the PCI bus, but the library libnvidia-ml is not installed"
    )


async def test_a_gpu_that_is_plugged_in_is_seen(simulator: Simulator, tmp_path: Path):
    _plug(tmp_path, "0000:10:00.0")
    simulator.show(machines.T4)
    async with probing(simulator, root=tmp_path) as (probe, helper):
        await probe.read()
        first = helper.pid
        _plug(tmp_path, "0000:18:00.0")
        simulator.show(machines.BRIDGED_3090)
        found = await probe.read()

        assert len(found.gpus) == 2
        assert helper.pid != first


async def test_a_stuck_driver_is_killed_and_asked_anew(simulator: Simulator):
    simulator.show(machines.T4)
    async with probing(simulator, seconds=0.5) as (_, helper):
        await _answered(helper)
        stuck = helper.pid
        assert stuck is not None
        simulator.show(replace(machines.T4, hang_seconds=60))

        with pytest.raises(TimedOut):
            await helper.ask()
        assert not psutil.pid_exists(stuck)

        simulator.show(machines.T4)
        assert len((await _answered(helper))["gpus"]) == 1
        assert helper.pid != stuck


async def test_a_driver_that_stays_stuck_is_asked_less_and_less(simulator: Simulator):
    simulator.show(replace(machines.T4, hang_seconds=60))
    helper = NvmlHelper(environment=simulator.environment, answer_seconds=0.1, start_seconds=0.3)
    try:
        with pytest.raises(Unavailable, match="asked again in"):
            await _until_refused(helper)
    finally:
        await helper.close()


async def test_the_process_that_asks_nvml_may_be_killed_at_any_time(simulator: Simulator):
    simulator.show(machines.T4)
    async with probing(simulator) as (_, helper):
        await helper.ask()
        assert helper.pid is not None
        psutil.Process(helper.pid).kill()

        with pytest.raises(Unavailable, match="ended"):
            await helper.ask()
        assert len((await helper.ask())["gpus"]) == 1


async def test_questions_that_are_on_their_way_together_are_all_answered(simulator: Simulator):
    simulator.show(machines.T4)
    async with probing(simulator) as (_, helper):
        await _answered(helper)
        used = [helper.begin("used") for _ in range(3)]
        told = await asyncio.gather(helper.ask(), *used)

    assert [sorted(each.keys() & {"gpus", "used"}) for each in told] == [["gpus"], *[["used"]] * 3]


async def test_all_who_wait_for_a_process_that_is_killed_are_told_and_it_is_started_anew_once(simulator: Simulator):
    simulator.show(machines.T4)
    async with probing(simulator) as (_, helper):
        await _answered(helper)
        assert helper.pid is not None
        psutil.Process(helper.pid).suspend()
        waiting = [asyncio.ensure_future(helper.begin("used")) for _ in range(3)]
        psutil.Process(helper.pid).kill()

        told = await asyncio.gather(*waiting, return_exceptions=True)

        assert [type(each) for each in told] == [Unavailable] * 3
        assert len((await _answered(helper))["gpus"]) == 1  # a second failure in a row would have been a pause


@pytest.mark.parametrize("machine", [machines.T4, replace(machines.T4, hang_seconds=60)])
def test_it_ends_when_nobody_asks_any_more_even_when_it_is_stuck(simulator: Simulator, machine: Machine):
    simulator.show(machine)
    program = subprocess.Popen(
        [sys.executable, "-m", "libs.hardware.nvml_program"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=simulator.environment,
    )
    assert program.stdin is not None
    program.stdin.write(b'{"id": 1}\n')
    program.stdin.close()

    assert program.wait(timeout=10) == 0


async def _answered(helper: NvmlHelper) -> dict[str, list[object]]:
    """The next answer, however long the process takes to start."""
    while True:
        try:
            return await helper.ask()
        except TimedOut as error:
            if "still starting" not in error.message:
                raise


async def _until_refused(helper: NvmlHelper) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                await helper.ask()
            except TimedOut:
                continue


def _plug(root: Path, address: str) -> None:
    device = root / "sys/bus/pci/devices" / address
    device.mkdir(parents=True)
    (device / "class").write_text("0x030200\n")
    (device / "vendor").write_text("0x10de\n")
