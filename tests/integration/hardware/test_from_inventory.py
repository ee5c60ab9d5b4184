"""What one machine told can be shown as a machine for a test: the simulated one tells the same."""

import json
from pathlib import Path

import pytest

from libs.common.contracts.node_registry import Inventory
from libs.hardware.inspector import Inspector
from libs.hardware.nvml_helper import NvmlHelper
from tests.nvml import from_inventory, machines
from tests.nvml.machines import Machine
from tests.nvml.simulator import Simulator

PROFILES = {
    "8 x H100 with NVSwitch": machines.H100_X8,
    "4 x A100": machines.A100_X4,
    "2 x 3090 with a bridge": machines.BRIDGED_3090,
    "4090 and 3060": machines.MIXED,
    "4 x L40S": machines.L40S_X4,
    "T4": machines.T4,
    "GB10": machines.GB10,
    "GH200": machines.GH200,
    "A100 in MIG mode": machines.A100_MIG,
    "nothing supported": machines.NOTHING_SUPPORTED,
    "worn out": machines.A100_X4.changed(3, remap_failed=1),
}


async def inventory_of(simulator: Simulator, folder: Path, *shown: Machine) -> Inventory:
    """After the last of several machines was shown to the same detector."""
    helper = NvmlHelper(environment=simulator.environment, answer_seconds=20)
    inspector = Inspector(folder=folder, helper=helper, seconds=20)
    try:
        for machine in shown:
            simulator.show(machine)
            inventory = await inspector.inventory()
    finally:
        await inspector.close()
    return inventory


@pytest.mark.parametrize("profile", PROFILES)
async def test_an_inventory_from_a_report_shows_the_same_machine(simulator: Simulator, tmp_path: Path, profile: str):
    told = await inventory_of(simulator, tmp_path, PROFILES[profile])
    report = tmp_path / "inventory.json"
    report.write_text(json.dumps(told.model_dump(mode="json")))

    again = await inventory_of(simulator, tmp_path, from_inventory.load(report))

    assert again.gpus == told.gpus
    assert again.gpu_links == told.gpu_links
    assert (again.driver_version, again.cuda_version, again.platform) == (
        *(told.driver_version, told.cuda_version),
        told.platform,
    )


@pytest.mark.parametrize("broken", [machines.LOST, machines.FATAL_XID])
async def test_a_gpu_that_was_broken_in_a_report_is_broken_again(simulator: Simulator, tmp_path: Path, broken: Machine):
    told = await inventory_of(simulator, tmp_path, machines.A100_X4, broken)
    mended = from_inventory.machine(told)
    working = Machine(
        gpus=tuple(machines.replace(gpu, lost=False, xid=(0, 0)) for gpu in mended.gpus),
        driver=mended.driver,
        cuda=mended.cuda,
    )

    again = await inventory_of(simulator, tmp_path, working, mended)

    assert [(gpu.uuid, gpu.healthy, gpu.problem) for gpu in again.gpus] == [
        (gpu.uuid, gpu.healthy, gpu.problem) for gpu in told.gpus
    ]
    assert sum(not gpu.healthy for gpu in again.gpus) == 1
