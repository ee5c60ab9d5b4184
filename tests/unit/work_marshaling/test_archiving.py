"""Finished work on its way into the archive, and read back from there."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.archive.checks import checked_row
from libs.common.contracts.base import Json
from libs.common.contracts.streams import WORK_DONE
from libs.common.contracts.work_marshaling import WorkError, WorkItem, WorkLookup, WorkStatus
from libs.common.contracts.work_records import FINISHED, FinishedWork
from libs.common.errors import Conflict, NotFound, Unavailable
from services.work_marshaling.archiving import GIVES_WAY_ITEMS, GIVES_WAY_SECONDS, gives_way, ready
from services.work_marshaling.model import Cancel, Failed, Filter, RetryDue
from services.work_marshaling.rows import finished, finished_of, row_of
from services.work_marshaling.tables import WORK_ITEMS
from tests.unit.work_marshaling.builders import NOW
from tests.unit.work_marshaling.house import RULES, House, Instance, Node, status_of, submit, view_of
from tests.unit.work_marshaling.test_machine import Story, completed

FORGETFUL = replace(RULES, ended_most=0, remembered_most=0, upkeep_seconds=1.0)
HANDED_OVER_SECONDS = 3.0


async def _done(house: House, instance: Instance, node: Node, *, result: object = "done", **fields: object) -> str:
    """An item that was completed and is no longer at hand."""
    work_id = await submit(instance, **fields)
    await node.complete(await node.takes(len(node.taken) + 1), result)
    await house.pass_time(HANDED_OVER_SECONDS)
    return work_id


async def _node(house: House, instance: Instance) -> Node:
    node = Node(house, instance.bus, "n1")
    await node.open(slots=100)
    return node


async def test_an_item_that_is_no_longer_at_hand_is_told_from_the_archive():
    house = House()
    async with house.marshaling(FORGETFUL) as instance:
        node = await _node(house, instance)
        work_id = await _done(house, instance, node, result={"a": 1}, labels={"team": "x"})

        assert instance.leading.present.term.memory.items == {}
        found = await view_of(instance, work_id)
        assert (found.status, found.result, found.labels, found.archived) == (
            WorkStatus.COMPLETED,
            {"a": 1},
            {"team": "x"},
            True,
        )
        assert (await instance.asking.result(work_id, 0)).node_id == "n1"


async def test_what_the_archive_has_is_removed_from_the_stream_that_led_there():
    house = House()
    async with house.marshaling() as instance:
        await _done(house, instance, await _node(house, instance))
        state = await instance.bus.stream_state(WORK_DONE)

        assert (state.last_sequence, state.messages) == (1, 0)


async def test_an_ended_item_lets_go_of_its_payload_once_it_was_handed_over():
    house = House()
    async with house.marshaling() as instance:
        work_id = await submit(instance)
        items = instance.leading.present.term.memory.items
        instance.leading.present.term.happen(work_id, Cancel())
        assert items[work_id].spec.payload is not None
        await house.pass_time(HANDED_OVER_SECONDS)

        assert items[work_id].spec.payload is None


async def test_an_archive_that_is_away_delays_nothing_and_catches_up():
    house = House()
    async with house.marshaling(FORGETFUL) as instance:
        node = await _node(house, instance)
        house.archive.go_away()
        ids = [await _done(house, instance, node) for _ in range(5)]
        assert instance.archiving.problem() is not None
        with pytest.raises(Unavailable):
            await view_of(instance, ids[0])

        house.archive.come_back()
        await house.pass_time(20, step=1.0)
        assert [await status_of(instance, each) for each in ids] == [WorkStatus.COMPLETED] * 5
        assert instance.archiving.problem() is None


async def test_an_end_is_handed_over_only_when_it_is_on_disk():
    house = House()
    async with house.marshaling() as instance:
        work_id = await submit(instance)
        term = instance.leading.present.term
        term.happen(work_id, Cancel())
        assert (list(term.memory.unarchived), ready(term)) == ([work_id], [])

        await house.settle()
        assert [item.work_id for item in ready(term)] == [work_id]


async def test_what_ends_while_finished_work_is_handed_over_goes_together_a_moment_later():
    house = House()
    async with house.marshaling() as instance:
        term = instance.leading.present.term
        for work_id in [await submit(instance) for _ in range(8)]:
            term.happen(work_id, Cancel())
            await house.pass_time(0.1)
        await house.pass_time(HANDED_OVER_SECONDS)
        state = await instance.bus.stream_state(WORK_DONE)

        assert 2 <= state.last_sequence <= 5
        assert term.memory.unarchived == {}


async def test_an_end_that_was_not_archived_when_the_leader_died_is_archived_by_the_next():
    house = House()
    async with house.marshaling() as instance:
        work_id = await submit(instance)
        instance.leading.present.term.happen(work_id, Cancel())
        await house.settle()
        assert (await instance.bus.stream_state(WORK_DONE)).last_sequence == 0
    async with house.marshaling():
        await house.pass_time(HANDED_OVER_SECONDS)

        assert await house.archive.get(WORK_ITEMS, {"work_id": work_id}) is not None


async def test_rows_that_were_on_their_way_when_the_leader_died_arrive():
    house = House()
    house.archive.go_away()
    async with house.marshaling() as instance:
        work_id = await _done(house, instance, await _node(house, instance))
    house.archive.come_back()
    async with house.marshaling():
        await house.pass_time(HANDED_OVER_SECONDS)

        assert await house.archive.get(WORK_ITEMS, {"work_id": work_id}) is not None


async def test_what_was_handed_over_is_not_handed_over_again_after_a_checkpoint():
    house = House()
    async with house.marshaling(replace(RULES, checkpoint_records=1)) as instance:
        node = await _node(house, instance)
        for _ in range(3):
            await _done(house, instance, node)
        handed_over = (await instance.bus.stream_state(WORK_DONE)).last_sequence
    async with house.marshaling() as instance:
        await house.pass_time(HANDED_OVER_SECONDS)

        assert (await instance.bus.stream_state(WORK_DONE)).last_sequence == handed_over


async def test_an_id_that_is_remembered_no_longer_is_known_from_the_archive():
    house = House()
    async with house.marshaling(FORGETFUL) as instance:
        node = await _node(house, instance)
        await _done(house, instance, node, work_id="mine")
        again = await instance.marshaling.submit(WorkItem(work_id="mine", work_type="chat", payload={"prompt": "hi"}))

        assert (again.duplicate, again.status) == (True, WorkStatus.COMPLETED)
        assert len(node.taken) == 1


async def test_another_item_under_an_id_that_only_the_archive_knows_is_refused():
    house = House()
    async with house.marshaling(FORGETFUL) as instance:
        await _done(house, instance, await _node(house, instance), work_id="mine")

        with pytest.raises(Conflict):
            await submit(instance, work_id="mine", payload={"prompt": "something else"})


async def test_an_id_of_a_queue_that_was_lost_is_known_from_the_archive():
    house = House()
    async with house.marshaling() as instance:
        await _done(house, instance, await _node(house, instance), work_id="mine")
    after = House()
    after.archive = house.archive
    after.clock.advance(3600)
    async with after.marshaling() as instance:
        await after.pass_time(1)

        again = await instance.marshaling.submit(WorkItem(work_id="mine", work_type="chat", payload={"prompt": "hi"}))
        assert again.duplicate


async def test_an_archive_that_is_away_does_not_keep_a_known_id_out():
    house = House()
    async with house.marshaling(FORGETFUL) as instance:
        node = await _node(house, instance)
        await _done(house, instance, node, work_id="mine")
        house.archive.go_away()
        await submit(instance, work_id="mine")

        assert (await node.takes(2)).work_id == "mine"


async def test_a_list_goes_on_in_the_archive():
    house = House()
    async with house.marshaling(replace(FORGETFUL, ended_most=2)) as instance:
        node = await _node(house, instance)
        ids = [await _done(house, instance, node) for _ in range(5)]
        waiting = await submit(instance, work_type="other")
        seen, cursor = [], None
        while True:
            page = await instance.asking.find(Filter(), limit=2, cursor=cursor)
            seen += [item.work_id for item in page.items]
            cursor = page.cursor
            if cursor is None:
                break

        assert seen == [waiting, *reversed(ids)]


async def test_a_list_of_the_archive_can_be_narrowed():
    house = House()
    async with house.marshaling(FORGETFUL) as instance:
        node = await _node(house, instance)
        await _done(house, instance, node)
        since = house.clock.now()
        later = await _done(house, instance, node)
        wanted = Filter(since=since, status=frozenset({WorkStatus.COMPLETED}), node_id="n1", work_type="chat")

        assert [each.work_id for each in (await instance.asking.find(wanted, limit=10, cursor=None)).items] == [later]


async def test_a_list_shows_what_is_at_hand_while_the_archive_is_away():
    house = House()
    async with house.marshaling() as instance:
        work_id = await submit(instance)
        house.archive.go_away()
        page = await instance.asking.find(Filter(), limit=10, cursor=None)

        assert [each.work_id for each in page.items] == [work_id]
        with pytest.raises(Unavailable):
            await instance.asking.find(Filter(), limit=10, cursor=page.cursor)


async def test_a_large_result_that_is_gone_says_how_large_it_was():
    house = House()
    async with house.marshaling(FORGETFUL) as instance:
        work_id = await _done(house, instance, await _node(house, instance), result="x" * 5000)

        with pytest.raises(NotFound, match=r"5\d\d\d bytes"):
            await instance.asking.result(work_id, 0)


async def test_the_sequence_of_an_archived_item_leads_to_it():
    house = House()
    async with house.marshaling(FORGETFUL) as instance:
        work_id = await _done(house, instance, await _node(house, instance))

        assert (await instance.asking.look_up(WorkLookup(sequence=1))).work_id == work_id


async def test_what_is_too_old_leaves_the_archive():
    house = House()
    async with house.marshaling(FORGETFUL) as instance:
        work_id = await _done(house, instance, await _node(house, instance))
        house.clock.advance(timedelta(days=31).total_seconds())
        await instance.archiving.retain()

        with pytest.raises(NotFound):
            await view_of(instance, work_id)


async def test_a_full_stream_of_finished_work_is_waited_out():
    house = House()
    async with house.marshaling(FORGETFUL) as instance:
        node = await _node(house, instance)
        async with house.server.connect("operator") as operator:
            await operator.ensure_stream(replace(WORK_DONE, max_bytes=100))
        work_id = await _done(house, instance, node)
        assert "WORK_DONE" in (instance.archiving.problem() or "")
        assert await status_of(instance, work_id) is WorkStatus.COMPLETED

        async with house.server.connect("operator") as operator:
            await operator.ensure_stream(WORK_DONE)
        await house.pass_time(HANDED_OVER_SECONDS)
        assert instance.archiving.problem() is None


@given(result=st.one_of(st.none(), st.text(st.characters(exclude_characters="\0", codec="utf-8")), st.integers(-9, 9)))
def test_a_row_tells_all_that_was_finished(result: Json):
    story = Story().assign()
    story.tell(completed("t1"))
    assert story.item is not None
    told = finished(story.item, result)

    assert finished_of(checked_row(WORK_ITEMS, row_of(told, log_seq=1))) == told


def test_long_errors_of_earlier_attempts_are_shortened():
    story = Story(max_attempts=2)
    for token in ("t1", "t2"):
        story.assign(token)
        story.tell(Failed(work_id="w", token=token, out_seq=1, error=WorkError(code="long", message="x" * 4000)))
        story.tell(RetryDue(at=NOW + timedelta(seconds=2.5)))
    assert story.item is not None
    told = finished(story.item, None)

    assert [len(attempt.error.message) for attempt in told.attempts if attempt.error] == [200, 4000]


@pytest.mark.parametrize(
    ("decisions", "waiting", "waited_seconds", "waits_on"),
    [
        (1_000, 1, 0.25, True),
        (3, 1, 0.25, False),
        (1_000, GIVES_WAY_ITEMS, 0.25, False),
        (1_000, 1, GIVES_WAY_SECONDS, False),
    ],
)
def test_finished_work_gives_way_to_work_within_bounds(
    decisions: int, waiting: int, waited_seconds: float, waits_on: bool
):
    assert gives_way(decisions, waiting=waiting, waited_seconds=waited_seconds) is waits_on


async def test_what_was_written_into_the_stream_by_somebody_else_is_archived_as_it_says():
    """What an instance wrote itself it knows; that must not hide what the stream really holds."""
    house = House()
    async with house.marshaling(FORGETFUL) as instance:
        node = await _node(house, instance)
        work_id = await _done(house, instance, node)
        told = await house.archive.get(WORK_ITEMS, {"work_id": work_id})
        assert told is not None
        other = finished_of(told).model_copy(update={"work_id": "somebody-elses"})
        await instance.bus.append(FINISHED, FinishedWork(items=(other,)), message_id=None)
        await house.pass_time(HANDED_OVER_SECONDS)

        assert (await view_of(instance, "somebody-elses")).status is WorkStatus.COMPLETED
