"""Which GPUs are not given, and why."""

import pytest

from libs.common.contracts.gpu_orchestrator import GpuState
from libs.common.contracts.node_registry import Gpu, Memory, MigDevice
from services.gpu_orchestrator.devices import DIVIDED, UNIFIED, devices_of
from tests.nodes import gpu

PART = MigDevice(uuid="MIG-1", name="part", vram_total_mb=100, vram_free_mb=90)


def problem(now: Gpu, *before: Gpu, of: int = 0) -> str | None:
    states = (GpuState(gpu=each) for each in before)
    return devices_of([GpuState(gpu=now)], Memory(), {}, {}, {}, states)[of].problem


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"healthy": False, "problem": "Xid 79: GPU has fallen off the bus"}, "Xid 79: GPU has fallen off the bus"),
        ({"healthy": False}, "it is not well"),
        ({"thermal_slowdown": True}, "it is so hot that its hardware slows it down"),
        ({"mig_devices": (PART,)}, DIVIDED),
        ({"unified_memory": True}, UNIFIED),
    ],
)
def test_a_gpu_is_given_unless_something_is_in_the_way(changes: dict[str, object], words: str | None):
    assert problem(gpu(0, **changes)) == words


def test_errors_of_its_memory_count_when_there_are_more_than_before():
    old, more = gpu(0, ecc_uncorrected_errors=5), gpu(0, ecc_uncorrected_errors=7)

    assert [problem(old), problem(old, old), problem(more, old)] == [
        None,
        None,
        "its memory had 2 more uncorrectable errors",
    ]


def test_a_part_ails_with_its_gpu():
    hot = gpu(0, mig_devices=(PART,), thermal_slowdown=True)

    assert (problem(hot, of=1) or "").startswith("of its GPU: it is so hot")
    assert problem(gpu(0, mig_devices=(PART,)), of=1) is None
