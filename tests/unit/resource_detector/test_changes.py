"""What is worth telling at once, and which GPUs must not be forgotten."""

from hypothesis import given
from hypothesis import strategies as st

from libs.common.contracts.node_registry import Disk, Memory
from services.resource_detector.changes import changed, gpus_changed, with_missing
from tests.nodes import gpu, inventory

numbers = st.lists(st.integers(0, 9), unique=True, max_size=6)


def test_what_moves_all_the_time_is_no_change():
    before = inventory(
        gpu(0), memory=Memory(total_mb=10, available_mb=9), disks=(Disk(path="/", total_mb=9, free_mb=8),)
    )
    now = inventory(
        gpu(0, vram_free_mb=1, vram_used_mb=2, temperature_celsius=80, power_watts=3, utilization_ratio=1),
        memory=Memory(total_mb=10, available_mb=1),
        disks=(Disk(path="/", total_mb=9, free_mb=1),),
    )

    assert not changed(before, now)


def test_another_gpu_a_problem_or_more_memory_is_a_change():
    before = inventory(gpu(0))

    assert changed(None, before)
    assert changed(before, inventory(gpu(0), gpu(1)))
    assert changed(before, inventory(gpu(0, healthy=False, problem="Xid 79")))
    assert changed(before, inventory(gpu(0), memory=Memory(total_mb=1)))


@given(numbers, numbers)
def test_no_gpu_that_was_there_is_ever_forgotten(before: list[int], now: list[int]):
    found = with_missing([gpu(number) for number in before], [gpu(number) for number in now])

    assert {each.uuid for each in found} == {f"GPU-{number}" for number in {*before, *now}}
    assert {each.uuid for each in found if each.healthy} == {f"GPU-{number}" for number in now}


@given(numbers, numbers)
def test_forgetting_nothing_twice_changes_nothing(before: list[int], now: list[int]):
    once = with_missing([gpu(number) for number in before], [gpu(number) for number in now])

    assert with_missing(once, [gpu(number) for number in now]) == once
    assert not gpus_changed(once, once)


def test_a_gpu_that_is_gone_has_nothing_measured_and_keeps_its_reason():
    (gone,) = with_missing([gpu(0, healthy=False, problem="Xid 79")], [])

    assert (gone.problem, gone.vram_free_mb, gone.vram_total_mb) == ("Xid 79", None, 24564)
