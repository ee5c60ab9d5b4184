"""A vendor's library that is missing, broken, slow or mad costs what it would have told, and is reported."""

import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from libs.common.contracts.node_registry import Inventory
from libs.hardware.inspector import Inspector
from libs.hardware.nvidia import SILENT, NvidiaProbe
from libs.hardware.nvml_helper import NvmlHelper
from tests.nvml import machines
from tests.nvml.machines import uuid
from tests.nvml.simulator import Simulator

MAD = ("print('garbage')", "print('[]')", 'print(\'{"id": 1, "gpus": 7, "problems": []}\')', "raise SystemExit(3)")


async def look(helper: NvmlHelper, folder: Path, *, seconds: float = 20) -> Inventory:
    inspector = Inspector(folder=folder, helper=helper, seconds=seconds)
    try:
        return await inspector.inventory()
    finally:
        await inspector.close()


def complaints(inventory: Inventory) -> str:
    """What was said of NVIDIA. All else must be there."""
    assert inventory.memory.total_mb
    assert inventory.cpu.threads
    assert inventory.hostname
    return "; ".join(problem.message for problem in inventory.problems if problem.source != "cpu")


async def test_one_that_sleeps_keeps_nobody_waiting(simulator: Simulator, tmp_path: Path):
    simulator.show(replace(machines.T4, hang_seconds=60))
    began = time.monotonic()

    inventory = await look(NvmlHelper(environment=simulator.environment, answer_seconds=2.0), tmp_path, seconds=2.0)

    assert time.monotonic() - began < 4
    assert (inventory.gpus, "still starting" in complaints(inventory)) == ((), True)


async def test_one_that_crashes_ends_its_own_process_only(simulator: Simulator, tmp_path: Path):
    simulator.show(replace(machines.T4, crash=True))

    inventory = await look(NvmlHelper(environment=simulator.environment, answer_seconds=20), tmp_path)

    assert (inventory.gpus, "ended" in complaints(inventory)) == ((), True)


async def test_what_one_prints_is_no_answer(simulator: Simulator, tmp_path: Path):
    simulator.show(replace(machines.T4, says='{"id": 1, "absent": "nonsense"}'))

    inventory = await look(NvmlHelper(environment=simulator.environment, answer_seconds=20), tmp_path)

    assert (inventory.gpus[0].vram_total_mb, complaints(inventory)) == (15360, "")


async def test_one_that_is_no_library_is_told(tmp_path: Path):
    (tmp_path / "libnvidia-ml.so.1").write_text("this is no library\n")
    environment = {"LD_LIBRARY_PATH": str(tmp_path)}

    inventory = await look(NvmlHelper(environment=environment, answer_seconds=20), tmp_path)

    assert (inventory.gpus, "cannot be loaded" in complaints(inventory)) == ((), True)


@pytest.mark.parametrize("script", MAD)
async def test_a_mad_answer_costs_the_gpus_and_is_told(tmp_path: Path, script: str):
    inventory = await look(NvmlHelper(program=(sys.executable, "-c", script), answer_seconds=20), tmp_path)

    assert inventory.gpus == ()
    assert complaints(inventory)


@pytest.mark.parametrize(
    ("mad", "field"),
    [
        ({"memory": (1000, 2000, 0)}, "vram_total_mb"),
        ({"temperature": 4_000_000}, "temperature_celsius"),
        ({"load": 100_000}, "utilization_ratio"),
        ({"clock": (-1, 1980)}, "clock_mhz"),
    ],
)
async def test_a_number_that_makes_no_sense_costs_its_field(
    simulator: Simulator, tmp_path: Path, mad: dict[str, object], field: str
):
    simulator.show(machines.A100_X4.changed(1, **mad))

    inventory = await look(NvmlHelper(environment=simulator.environment, answer_seconds=20), tmp_path)

    assert [getattr(gpu, field) is None for gpu in inventory.gpus] == [False, True, False, False]
    assert all(gpu.healthy for gpu in inventory.gpus)
    assert [problem.source for problem in inventory.problems if problem.source.startswith("GPU")] == [uuid(1)]


async def test_one_late_answer_costs_the_measurements_and_a_second_the_gpus(simulator: Simulator):
    simulator.show(machines.T4)
    helper = NvmlHelper(environment=simulator.environment, answer_seconds=20, start_seconds=20)
    probe = NvidiaProbe(helper)
    try:
        await probe.read()
        simulator.show(replace(machines.T4, crash=True))
        late, silent = await probe.read(), await probe.read()
        simulator.show(machines.T4)
        while (mended := await probe.read()).problems:
            await helper.restart()
    finally:
        await probe.close()

    assert (late.gpus[0].healthy, late.gpus[0].vram_total_mb, late.gpus[0].vram_free_mb) == (True, 15360, None)
    assert (silent.gpus[0].healthy, silent.gpus[0].problem) == (False, SILENT)
    assert (mended.gpus[0].healthy, mended.gpus[0].vram_free_mb) == (True, 14912)


async def test_a_fatal_xid_is_not_forgotten_when_the_process_that_heard_it_ends(simulator: Simulator):
    simulator.show(machines.A100_X4)
    helper = NvmlHelper(environment=simulator.environment, answer_seconds=20)
    probe = NvidiaProbe(helper)
    try:
        await probe.read()
        simulator.show(machines.FATAL_XID)
        await probe.read()
        simulator.show(machines.A100_X4)
        await helper.restart()
        found = await probe.read()
    finally:
        await probe.close()

    assert [gpu.problem for gpu in found.gpus] == [None, "Xid 79: GPU has fallen off the bus", None, None]


async def test_nvml_is_started_anew_to_see_a_lost_gpu_return(simulator: Simulator):
    simulator.show(machines.A100_X4)
    helper = NvmlHelper(environment=simulator.environment, answer_seconds=20)
    probe = NvidiaProbe(helper, look_again_seconds=0)
    try:
        await probe.read()
        first = helper.pid
        simulator.show(machines.LOST)
        lost = await probe.read()
        simulator.show(machines.A100_X4)
        found = await probe.read()
        second = helper.pid
        await probe.read()
        assert (second != first, helper.pid) == (True, second)
    finally:
        await probe.close()

    assert [gpu.healthy for gpu in lost.gpus] == [True, True, False, True]
    assert [gpu.healthy for gpu in found.gpus] == [True] * 4
