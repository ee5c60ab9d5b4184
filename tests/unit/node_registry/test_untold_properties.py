"""Whatever the elected registry had told when it died, the next one tells what is missing, and nothing twice."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from libs.common.contracts.node_registry import NodeState
from services.node_registry.model import Change
from services.node_registry.numbering import Numbers, next_term
from services.node_registry.untold import Untold, level

AT = datetime(2030, 1, 1, tzinfo=UTC)
NODES = ("a", "b")
levels = st.tuples(st.sampled_from(NODES), st.sampled_from(list(NodeState)), st.booleans())


def change(node_id: str, state: NodeState, draining: bool, previous: NodeState | None) -> Change:
    return Change(node_id=node_id, previous=previous, state=state, reason="", at=AT, draining=draining)


def history(steps: list[tuple[str, NodeState, bool]]) -> list[Change]:
    """Changes as a registry makes them: each to another level than before."""
    now: dict[str, tuple[NodeState, bool]] = {}
    made = []
    for node_id, state, draining in steps:
        if now.get(node_id) != (state, draining):
            made.append(change(node_id, state, draining, now[node_id][0] if node_id in now else None))
            now[node_id] = (state, draining)
    return made


def tell_all(untold: Untold) -> list[Change]:
    told = []
    while (waiting := untold.first()) is not None:
        told.append(waiting.change)
        untold.told(waiting)
    return told


def beliefs(changes: list[Change]) -> list[Change]:
    return list({each.node_id: each for each in changes}.values())


def ends(changes: list[Change]) -> dict[str, tuple[NodeState, bool]]:
    return {each.node_id: level(each) for each in changes}


@given(st.lists(levels, max_size=20), st.data())
def test_what_the_first_told_and_what_the_next_tells_end_at_the_belief(steps, data):
    changes = history(steps)
    told_by_first = changes[: data.draw(st.integers(0, len(changes)))]
    mine, heard = Untold(1000), list(told_by_first)
    own = list(changes)
    while heard or own:  # the two are heard in any order, each in its own
        if own and (not heard or data.draw(st.booleans())):
            mine.add(own.pop(0), now=0.0, elected=False)
        else:
            first = heard.pop(0)
            mine.heard(first.node_id, level(first))
    mine.begin(beliefs(changes), now=0.0)
    told = tell_all(mine)

    assert ends([*told_by_first, *told]) == ends(changes)
    last = ends(told_by_first)
    for each in told:
        assert last.get(each.node_id) != level(each), "told twice"
        assert each.previous == (last[each.node_id][0] if each.node_id in last else None)
        last[each.node_id] = level(each)


@given(st.lists(levels, max_size=20))
def test_the_elected_one_tells_every_change_in_order(steps):
    changes = history(steps)
    untold = Untold(1000)
    for each in changes:
        untold.add(each, now=0.0, elected=True)

    assert tell_all(untold) == changes
    assert len(untold) == 0


@given(st.lists(levels, max_size=30), st.integers(1, 5))
def test_no_more_wait_than_may(steps, most):
    untold = Untold(most)
    for each in history(steps):
        untold.add(each, now=0.0, elected=True)

    assert len(untold) <= most
    untold.begin(beliefs(history(steps)), now=0.0)
    for node_id in NODES:
        untold.forget(node_id)
    assert untold.first() is None


def test_nodes_that_came_before_us_are_not_told_again():
    untold = Untold(10)
    untold.add(change("a", NodeState.ONLINE, False, None), now=1.0, elected=False)
    untold.add(change("a", NodeState.ONLINE, True, NodeState.ONLINE), now=1.1, elected=False)
    untold.add(change("b", NodeState.ONLINE, False, None), now=9.0, elected=False)
    untold.presume(before=5.0)
    untold.begin([change("a", NodeState.ONLINE, True, None), change("b", NodeState.ONLINE, False, None)], now=10.0)

    assert [each.node_id for each in tell_all(untold)] == ["b"]


def test_a_suspicion_that_was_never_told_is_never_presumed():
    untold = Untold(10)
    untold.add(change("a", NodeState.ONLINE, False, None), now=1.0, elected=False)
    untold.add(change("a", NodeState.SUSPECT, False, NodeState.ONLINE), now=2.0, elected=False)
    untold.presume(before=5.0)

    assert [each.state for each in tell_all(untold)] == [NodeState.SUSPECT]


@given(st.integers(0, 2**42), st.integers(0, 2**42), st.integers(0, 1000))
def test_numbers_of_a_later_term_are_higher_whatever_its_clock_says(first_clock, second_clock, used):
    first = next_term(now_milliseconds=first_clock, last=0)
    numbers = Numbers(first)
    before = [numbers.next() for _ in range(used)]
    after = Numbers(next_term(now_milliseconds=second_clock, last=first)).next()

    assert before == sorted(set(before))
    assert all(number < after < 2**63 for number in before)
