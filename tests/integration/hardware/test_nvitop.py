"""The simulated GPUs look real to a monitor that others wrote, unmodified."""

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.nvml import machines
from tests.nvml.machines import Machine
from tests.nvml.simulator import Simulator

MIB = 1024 * 1024
ASK = """
import json
from nvitop import Device
devices = Device.all()
print(json.dumps([
    {"uuid": each.uuid(), "name": each.name(), "total": each.memory_total(), "used": each.memory_used(),
     "temperature": each.temperature(), "capability": each.cuda_compute_capability(),
     "parts": [part.memory_total() for part in each.mig_devices()]}
    for each in devices
]))
"""


def run(simulator: Simulator, machine: Machine, *arguments: str) -> str:
    assert find_spec("nvitop"), "nvitop belongs to the extra `dev`"
    simulator.show(machine)
    environment = {**simulator.environment, "COLUMNS": "100", "LINES": "60", "TERM": "xterm"}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


@pytest.mark.parametrize(
    "machine",
    [
        *(machines.H100_X8, machines.A100_X4, machines.BRIDGED_3090, machines.MIXED, machines.L40S_X4, machines.T4),
        *(machines.GH200, machines.A100_MIG),
    ],
)
def test_it_sees_every_gpu_as_it_is_described(simulator: Simulator, machine: Machine):
    told = json.loads(run(simulator, machine, "-c", ASK))

    assert [each["uuid"] for each in told] == [machines.uuid(number) for number in range(len(machine.gpus))]
    for each, gpu in zip(told, machine.gpus, strict=True):
        assert gpu.name.endswith(each["name"])
        assert (each["total"] // MIB, each["used"] // MIB) == gpu.memory[:2]
        assert (each["temperature"], tuple(each["capability"])) == (gpu.temperature, gpu.capability)
        assert [size // MIB for size in each["parts"]] == [size for _, size, _, _ in gpu.migs]


@pytest.mark.parametrize("machine", [machines.GB10, machines.NOTHING_SUPPORTED, machines.A100_MIG, machines.H100_X8])
def test_its_page_shows_them(simulator: Simulator, machine: Machine):
    page = run(simulator, machine, "-m", "nvitop", "-1", "--no-unicode")

    for gpu in machine.gpus:
        assert gpu.name.removeprefix("NVIDIA ").removeprefix("GeForce ")[:15] in page
