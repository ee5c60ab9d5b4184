"""Who is alive, by what was heard and what time it is."""

from dataclasses import replace

import pytest

from libs.common.contracts.node_registry import NodeState
from services.node_registry.machine import born, heard, listen, sweep
from services.node_registry.model import Ear, Guard, Life, Rules

RULES = Rules()
HEARING = Ear(since=0.0, connections=1, looked_at=0.0)


def life(node: int = 0, *, at: float = 0.0) -> Life:
    return born(boot_id=f"boot-{node}", heartbeat_seconds=5.0, now=at)


def states(
    lives: dict[str, Life], now: float, *, ear: Ear = HEARING, guard: Guard | None = None
) -> dict[str, NodeState]:
    changed, _ = sweep(lives, ear=ear, guard=guard or Guard(), now=now, rules=RULES)
    return {node_id: each.state for node_id, each in (lives | changed).items()}


@pytest.mark.parametrize(
    ("seconds", "state"),
    [
        (0.0, NodeState.ONLINE),
        (14.9, NodeState.ONLINE),
        (15.0, NodeState.SUSPECT),
        (29.9, NodeState.SUSPECT),
        (30.0, NodeState.OFFLINE),
        (10_000.0, NodeState.OFFLINE),
    ],
)
def test_three_missed_heartbeats_make_a_suspect_and_six_are_the_end(seconds: float, state: NodeState):
    assert states({"a": life()}, seconds) == {"a": state}


@pytest.mark.parametrize("state", list(NodeState))
def test_one_heartbeat_brings_a_node_back_at_once(state: NodeState):
    gone = replace(life(), state=state, reason="silent")

    back = heard(gone, boot_id="boot-0", sequence=9, now=100.0, rules=RULES)

    assert (back.state, back.heard_at, back.sequence) == (NodeState.ONLINE, 100.0, 9)


def test_a_slow_node_is_judged_by_its_own_heartbeat():
    slow = born(boot_id="b", heartbeat_seconds=60.0, now=0.0)

    assert states({"slow": slow}, 179.0) == {"slow": NodeState.ONLINE}
    assert states({"slow": slow}, 180.0) == {"slow": NodeState.SUSPECT}


def test_a_new_boot_id_means_a_restart():
    after = heard(replace(life(), sequence=40), boot_id="boot-new", sequence=1, now=3.0, rules=RULES)

    assert (after.boot_id, after.sequence, after.past_boots) == ("boot-new", 1, ("boot-0",))
    assert after.reason == "it restarted"


def test_two_machines_with_one_id_are_noticed_and_the_known_one_stays():
    second = heard(life(), boot_id="other", sequence=1, now=1.0, rules=RULES)

    again = heard(second, boot_id="boot-0", sequence=2, now=2.0, rules=RULES)

    assert again.boot_id == "other"
    assert again.conflict is not None
    assert "boot-0" in again.conflict


def test_a_former_boot_takes_over_again_when_the_later_one_is_silent():
    second = heard(life(), boot_id="other", sequence=1, now=1.0, rules=RULES)

    again = heard(second, boot_id="boot-0", sequence=2, now=100.0, rules=RULES)

    assert (again.boot_id, again.conflict) == ("boot-0", None)


def test_silence_does_not_count_while_we_do_not_hear():
    deaf = Ear(since=None, connections=1, looked_at=0.0)

    assert states({"a": life()}, 1000.0, ear=deaf) == {"a": NodeState.ONLINE}


def test_silence_counts_from_when_we_hear_again():
    back = Ear(since=1000.0, connections=2, looked_at=1000.0)

    assert states({"a": life()}, 1014.0, ear=back) == {"a": NodeState.ONLINE}
    assert states({"a": life()}, 1015.0, ear=back) == {"a": NodeState.SUSPECT}


def test_an_outage_a_new_connection_and_a_long_absence_begin_the_silence_anew():
    def look(now: float, *, connections: int = 1, hearing: bool = True) -> float | None:
        ear = Ear(since=0.0, connections=1, looked_at=100.0)
        return listen(ear, now=now, connections=connections, hearing=hearing, rules=RULES).since

    assert look(100.5) == 0.0
    assert look(100.5, hearing=False) is None
    assert look(100.5, connections=2) == 100.5
    assert look(130.0) == 130.0


def test_when_most_nodes_fall_silent_together_none_is_declared_dead():
    lives = {f"n{each}": life(each) for each in range(10)} | {"alive": life(99, at=29.0)}

    found = states(lives, 30.0)

    assert found.pop("alive") is NodeState.ONLINE
    assert set(found.values()) == {NodeState.SUSPECT}


def test_a_few_silent_nodes_among_many_are_declared_dead():
    lives = {f"n{each}": life(each, at=29.0) for each in range(10)} | {"dead": life(99)}

    assert states(lives, 30.0)["dead"] is NodeState.OFFLINE


def test_the_only_node_of_a_mesh_is_declared_dead():
    assert states({"only": life()}, 30.0) == {"only": NodeState.OFFLINE}


def test_after_a_mass_silence_the_rest_gets_its_full_time_again():
    lives = {f"n{each}": life(each) for each in range(4)}
    changed, guard = sweep(lives, ear=HEARING, guard=Guard(), now=40.0, rules=RULES)
    lives |= changed
    back = {
        name: heard(lives[name], boot_id=lives[name].boot_id, sequence=1, now=50.0, rules=RULES)
        for name in ("n0", "n1", "n2")
    }
    lives |= back

    changed, guard = sweep(lives, ear=HEARING, guard=guard, now=51.0, rules=RULES)
    assert not guard.held
    assert changed == {}

    for name in back:
        lives[name] = replace(lives[name], heard_at=80.0)
    changed, _ = sweep(lives, ear=HEARING, guard=guard, now=81.0, rules=RULES)
    assert changed["n3"].state is NodeState.OFFLINE
