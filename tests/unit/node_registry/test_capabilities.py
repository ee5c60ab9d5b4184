"""What counts as a change of a machine, and who is silent for too long to be remembered."""

from hypothesis import given
from hypothesis import strategies as st

from libs.common.contracts.node_registry import Disk, Memory, NodeState
from services.node_registry.capabilities import difference
from services.node_registry.facts import announced as kept
from services.node_registry.machine import outlived
from services.node_registry.model import Life, Rules
from tests.nodes import announced, gpu, inventory

numbers = st.integers(0, 1_000_000)


@given(numbers, numbers, numbers)
def test_what_moves_all_the_time_is_no_change(free_vram, free_ram, free_disk):
    def told(vram: int, ram: int, disk: int):
        memory, disks = Memory(total_mb=10, available_mb=ram), (Disk(path="/", total_mb=10, free_mb=disk),)
        machine = inventory(gpu(0, vram_free_mb=vram, temperature_celsius=vram), memory=memory, disks=disks)
        return kept(announced("a", inventory=machine))

    assert difference(told(1, 1, 1), told(free_vram, free_ram, free_disk)) == {}


@given(st.lists(st.integers(0, 5), unique=True), st.lists(st.integers(0, 5), unique=True))
def test_a_gpu_that_came_or_went_is_a_change_that_says_what_was_and_is(before, after):
    found = difference(kept(announced("a", *map(gpu, before))), kept(announced("a", *map(gpu, after))))

    assert ("gpus" in found) == (before != after)
    if before != after:
        assert [each["uuid"] for each in found["gpus"]["before"]] == [f"GPU-{number}" for number in before]
        assert [each["uuid"] for each in found["gpus"]["after"]] == [f"GPU-{number}" for number in after]


@given(st.dictionaries(st.text(), st.tuples(st.sampled_from(list(NodeState)), st.floats(0, 100))), st.floats(0, 100))
def test_only_who_is_offline_for_its_time_is_forgotten(nodes, seconds):
    lives = {
        node_id: Life(state=state, reason="", boot_id="b", heard_at=heard_at, heartbeat_seconds=5.0)
        for node_id, (state, heard_at) in nodes.items()
    }
    gone = outlived(lives, now=100.0, rules=Rules(forget_seconds=seconds))

    assert set(gone) == {
        node_id for node_id, (state, at) in nodes.items() if state is NodeState.OFFLINE and 100.0 - at >= seconds
    }
