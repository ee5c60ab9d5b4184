"""The queue as those who submit and those who work see it."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from libs.common.bus.bus import Bus
from libs.common.bus.codec import encode
from libs.common.contracts.base import DEAD_LETTER
from libs.common.contracts.node_registry import ANNOUNCE
from libs.common.contracts.streams import DEAD_LETTERS, WORK_IN
from libs.common.contracts.work_marshaling import (
    ASSIGNED,
    CANCEL,
    WORK_STATUS,
    Assignment,
    CancelWork,
    SubmitMany,
    WorkItem,
    WorkLookup,
    WorkStatus,
)
from libs.common.errors import Conflict, Malformed, NotFound, TooLarge
from services.work_marshaling.model import Filter
from tests.nodes import announced
from tests.unit.work_marshaling.house import (
    RULES,
    House,
    Instance,
    Node,
    publish_plainly,
    status_of,
    submit,
    view_of,
)


async def letters(bus: Bus) -> list[str]:
    count = (await bus.stream_state(DEAD_LETTERS)).last_sequence
    kept = [await bus.message(DEAD_LETTERS, sequence) for sequence in range(1, count + 1)]
    return [bus.decode(DEAD_LETTER, each).reason for each in kept if each is not None]


async def test_an_item_goes_to_a_node_and_its_result_can_be_fetched(queue: Instance, node: Node):
    work_id = await submit(queue)
    given = await node.takes()
    await node.complete(given, {"text": "hello"})

    result = await queue.asking.result(work_id, 0)

    assert given.payload == {"prompt": "hi"}
    assert (result.status, result.result, result.node_id) == (WorkStatus.COMPLETED, {"text": "hello"}, "n1")


async def test_an_item_just_submitted_can_be_asked_for(queue: Instance):
    assert await status_of(queue, await submit(queue)) is WorkStatus.PENDING


async def test_progress_means_running(queue: Instance, node: Node):
    work_id = await submit(queue)
    await node.progress(await node.takes())

    assert await status_of(queue, work_id) is WorkStatus.RUNNING


async def test_a_node_that_goes_on_reporting_keeps_its_item(house: House, queue: Instance, node: Node):
    work_id = await submit(queue)
    given = await node.takes()
    for _ in range(10):
        await node.progress(given)
        await house.pass_time(10)

    assert await status_of(queue, work_id) is WorkStatus.RUNNING


async def test_a_job_whose_worker_went_silent_is_given_out_again(house: House, queue: Instance, node: Node):
    await submit(queue)
    first = await node.takes()
    for _ in range(5):
        await house.pass_time(10)
        await node.announce()
    again = await node.takes(2)

    assert again.work_id == first.work_id
    assert again.attempt == 2
    assert again.attempt_token != first.attempt_token


async def test_a_late_result_of_an_expired_attempt_counts_once(house: House, queue: Instance, node: Node):
    work_id = await submit(queue)
    first = await node.takes()
    for _ in range(5):
        await house.pass_time(10)
        await node.announce()
    second = await node.takes(2)
    await node.complete(first, "first")
    await node.complete(second, "second")

    assert (await queue.asking.result(work_id, 0)).result == "first"
    assert (await queue.marshaling.stats()).totals == {"admitted": 1, "completed": 1, "late": 1}
    assert second.attempt_token in node.stopped


async def test_whoever_reports_an_attempt_that_is_over_is_told_to_stop(house: House, queue: Instance, node: Node):
    work_id = await submit(queue)
    given = await node.takes()
    await queue.marshaling.cancel(CancelWork(work_id=work_id))
    await house.pass_time(6)
    node.stopped.clear()
    await node.progress(given)
    await node.progress(given)

    assert node.stopped == [given.attempt_token]


async def test_whoever_told_how_an_attempt_ended_is_not_told_to_stop_it(house: House, queue: Instance, node: Node):
    await submit(queue)
    given = await node.takes()
    await node.complete(given)
    await node.progress(given)

    assert node.stopped == []


async def test_no_lease_expires_while_nobody_can_be_heard(house: House, queue: Instance, node: Node):
    await submit(queue)
    await node.takes()
    house.server.stop()
    await house.pass_time(45)
    house.server.start()
    await house.pass_time(25)

    stats = await queue.marshaling.stats()
    assert stats.by_status["assigned"] == 1


async def test_a_failure_is_tried_again_after_a_while(house: House, queue: Instance, node: Node):
    work_id = await submit(queue)
    await node.fail(await node.takes())
    assert await status_of(queue, work_id) is WorkStatus.RETRYING
    assert len(node.taken) == 1

    await node.complete(await node.takes(2))
    assert await status_of(queue, work_id) is WorkStatus.COMPLETED


async def test_an_item_that_fails_every_time_is_dead(house: House, queue: Instance, node: Node):
    work_id = await submit(queue, retry_delay_seconds=0)
    for number in range(1, 4):
        await node.fail(await node.takes(number))

    seen = await view_of(queue, work_id)
    assert seen.status is WorkStatus.DEAD
    assert len(seen.attempts) == 3
    assert seen.error is not None


async def test_a_final_error_is_not_tried_again(queue: Instance, node: Node):
    work_id = await submit(queue)
    await node.fail(await node.takes(), retryable=False)

    assert await status_of(queue, work_id) is WorkStatus.FAILED


async def test_a_refused_attempt_goes_elsewhere(house: House, bus: Bus, queue: Instance, node: Node):
    node.accepts = False
    work_id = await submit(queue)
    await house.pass_time(1)
    other = Node(house, bus, "n2")
    await other.open()
    given = await other.takes()
    await other.complete(given)

    seen = await view_of(queue, work_id)
    assert seen.status is WorkStatus.COMPLETED


async def test_a_node_that_refuses_once_is_soon_asked_again(house: House, queue: Instance, node: Node):
    node.accepts = False
    await submit(queue)
    await house.settle()
    node.accepts = True
    await house.pass_time(1)

    assert len(node.taken) == 1


async def test_an_attempt_that_nobody_heard_of_is_taken_back(house: House, queue: Instance, bus: Bus):
    ghost = Node(house, bus, "ghost")
    await ghost.announce()
    work_id = await submit(queue)
    await house.pass_time(1)
    assert await status_of(queue, work_id) is WorkStatus.ASSIGNED
    await house.pass_time(6)

    seen = await view_of(queue, work_id)
    assert seen.status is WorkStatus.PENDING
    assert seen.attempts[0].error is not None
    assert "nobody answers" in seen.attempts[0].error.message


async def test_an_assignment_is_offered_again_until_it_is_answered(house: House, queue: Instance, bus: Bus):
    late = Node(house, bus, "n1")
    await late.announce()
    await submit(queue)
    await house.pass_time(2)
    await late.open()

    assert (await late.takes()).attempt == 1


async def test_observers_see_assignments_without_payload_and_token(bus: Bus, queue: Instance, node: Node):
    seen: list[Assignment] = []

    async def see(assignment: Assignment) -> None:
        seen.append(assignment)

    await bus.subscribe(ASSIGNED, see)
    work_id = await submit(queue)
    await node.takes()

    assert [(each.work_id, each.node_id, each.payload, each.attempt_token) for each in seen] == [
        (work_id, "n1", None, None)
    ]


async def test_an_outside_worker_is_given_the_payload_and_needs_no_token(house: House, bus: Bus, queue: Instance):
    seen: list[Assignment] = []

    async def see(assignment: Assignment) -> None:
        seen.append(assignment)

    await bus.subscribe(ASSIGNED, see)
    work_id = await submit(queue, requirements={"node_ids": ["external"]})
    await house.settle()
    (given,) = seen
    assert given.payload == {"prompt": "hi"}
    assert given.node_id == "external"

    await Node(house, bus, "external").complete(given.model_copy(update={"attempt_token": None}), "outside")
    assert (await queue.asking.result(work_id, 0)).result == "outside"


async def test_of_outcomes_that_are_told_together_each_counts_for_itself(bus: Bus, queue: Instance, node: Node):
    ids = [await submit(queue) for _ in range(3)]
    await node.takes(3)
    first, guessed, last = node.taken
    guessed = guessed.model_copy(update={"attempt_token": "guessed"})
    await node.complete_together({work_id: {"of": work_id} for work_id in ids}, first, guessed, last)

    for given in (first, last):
        assert (await queue.asking.result(given.work_id, 0)).result == {"of": given.work_id}
    assert await status_of(queue, guessed.work_id) is WorkStatus.ASSIGNED
    assert len(await letters(bus)) == 1


async def test_a_stranger_who_completes_somebodys_work_makes_a_dead_letter(bus: Bus, queue: Instance, node: Node):
    work_id = await submit(queue)
    given = await node.takes()
    await node.complete(given.model_copy(update={"attempt_token": None}))
    await node.complete(given.model_copy(update={"attempt_token": "guessed"}))

    assert await status_of(queue, work_id) is WorkStatus.ASSIGNED
    assert len(await letters(bus)) == 2


async def test_what_cannot_be_read_is_kept_and_the_next_goes_on(house: House, bus: Bus, queue: Instance):
    async with house.server.connect("stranger") as transport:
        for payload in (b"not json", b"[]", b'{"work_type": "BAD TYPE"}', b'{"work_type":"chat","payload":NaN}'):
            await transport.publish("compute.work.submit.v1", payload, {})
        await transport.publish("compute.work.completed.v1", b"\xff\xfe", {})
    await publish_plainly(bus, work_id="good")
    await house.settle()

    assert await status_of(queue, "good") is WorkStatus.PENDING
    assert len(await letters(bus)) == 5
    with pytest.raises(Malformed):
        await queue.asking.look_up(WorkLookup(sequence=1))


async def test_the_same_submission_twice_is_one_item(queue: Instance):
    first = await queue.marshaling.submit(WorkItem(work_id="mine", work_type="chat"))
    second = await queue.marshaling.submit(WorkItem(work_id="mine", work_type="chat"))

    assert not first.duplicate
    assert second.duplicate
    assert (await queue.marshaling.stats()).open_items == 1


async def test_the_same_id_with_other_content_is_a_conflict(queue: Instance):
    await submit(queue, work_id="mine")

    with pytest.raises(Conflict):
        await submit(queue, work_id="mine", priority=1)


async def test_a_conflict_that_came_by_nats_can_be_looked_up(house: House, bus: Bus, queue: Instance):
    await publish_plainly(bus, work_id="mine")
    await publish_plainly(bus, work_id="mine")
    await publish_plainly(bus, work_id="mine", priority=1)
    await house.settle()

    assert (await queue.asking.look_up(WorkLookup(sequence=2))).work_id == "mine"
    with pytest.raises(Conflict):
        await queue.asking.look_up(WorkLookup(sequence=3))


async def test_an_item_without_an_id_is_found_by_its_sequence(house: House, bus: Bus, queue: Instance):
    await publish_plainly(bus)
    await house.settle()

    seen = await queue.asking.look_up(WorkLookup(sequence=1))
    assert seen.work_id.startswith("srv-")
    assert seen.sequence == 1


async def test_a_bad_item_in_a_batch_refuses_only_itself(queue: Instance):
    items = [
        {"work_type": "chat"},
        {"work_type": "NO"},
        {"work_type": "chat", "work_id": "dead", "priority": 11},
        {"work_type": "chat"},
    ]

    answers = await queue.marshaling.submit_many(SubmitMany(items=tuple(items)))

    assert [answer.accepted is not None for answer in answers.answers] == [True, False, False, True]
    assert (answers.accepted, answers.refused) == (2, 2)
    refused = answers.answers[2].error
    assert refused is not None
    assert "`priority` is 11: Input should be less than or equal to 9" in refused.message
    assert '`work_id` is "dead"' in refused.message


async def test_items_submitted_together_share_one_message(queue: Instance, bus: Bus):
    await asyncio.gather(*(submit(queue) for _ in range(50)))

    assert (await bus.stream_state(WORK_IN)).messages <= 3
    assert (await queue.marshaling.stats()).open_items == 50


async def test_a_twin_within_a_batch_is_the_same_item(queue: Instance):
    twin = {"work_type": "chat", "work_id": "twin"}

    answers = await queue.marshaling.submit_many(SubmitMany(items=(twin, twin)))

    assert [answer.accepted and answer.accepted.duplicate for answer in answers.answers] == [False, True]


async def test_labels_beyond_the_limit_are_refused(queue: Instance):
    with pytest.raises(TooLarge, match="labels"):
        await submit(queue, labels={f"name{number}": "x" * 4_000 for number in range(20)})


async def test_a_large_payload_reaches_the_node(queue: Instance, node: Node):
    await submit(queue, payload={"text": "x" * 100_000})

    assert (await node.takes()).payload == {"text": "x" * 100_000}


async def test_cancelling_ends_a_pending_item(queue: Instance, bus: Bus):
    work_id = await submit(queue)

    seen = await bus.request(CANCEL, CancelWork(work_id=work_id, reason="enough"))

    assert seen.status is WorkStatus.CANCELLED
    with pytest.raises(Conflict):
        await bus.request(CANCEL, CancelWork(work_id=work_id))


async def test_cancelling_stops_a_running_attempt(house: House, queue: Instance, node: Node):
    work_id = await submit(queue)
    given = await node.takes()
    await queue.marshaling.cancel(CancelWork(work_id=work_id))
    await house.settle()

    assert node.stopped == [given.attempt_token]


async def test_an_item_is_found_by_nats(queue: Instance, bus: Bus):
    work_id = await submit(queue)

    assert (await bus.request(WORK_STATUS, WorkLookup(work_id=work_id))).work_id == work_id
    with pytest.raises(NotFound):
        await bus.request(WORK_STATUS, WorkLookup(work_id="absent"))


async def test_whoever_waits_for_a_result_has_it_when_it_is_there(queue: Instance, node: Node):
    work_id = await submit(queue)
    given = await node.takes()
    waiting = asyncio.create_task(queue.asking.result(work_id, 30))
    await node.complete(given, 42)

    assert (await asyncio.wait_for(waiting, 5)).result == 42


async def test_a_result_that_is_not_there_yet_is_not_found(queue: Instance):
    work_id = await submit(queue)

    with pytest.raises(NotFound, match="pending"):
        await queue.asking.result(work_id, 0.01)


async def test_nothing_is_given_out_before_its_time(house: House, queue: Instance, node: Node):
    await submit(queue, not_before=house.clock.now() + timedelta(seconds=20))
    await house.pass_time(15)
    assert node.taken == []

    await node.takes()


async def test_an_item_that_misses_its_deadline_fails(house: House, queue: Instance):
    work_id = await submit(queue, deadline=house.clock.now() + timedelta(seconds=5))
    await house.pass_time(6)

    seen = await view_of(queue, work_id)
    assert seen.status is WorkStatus.FAILED
    assert seen.error is not None
    assert seen.error.code == "deadline_passed"


async def test_an_attempt_may_not_take_longer_than_its_timeout(house: House, queue: Instance, node: Node):
    work_id = await submit(queue, timeout_seconds=40, max_attempts=1)
    given = await node.takes()
    for _ in range(12):
        await node.progress(given)
        await house.pass_time(8)

    seen = await view_of(queue, work_id)
    assert seen.status is WorkStatus.DEAD
    assert seen.error is not None
    assert seen.error.code == "timed_out"
    assert given.attempt_token in node.stopped


async def test_items_are_listed_newest_first_page_by_page(queue: Instance):
    made = [await submit(queue, priority=number % 2) for number in range(5)]

    first = await queue.asking.find(Filter(), limit=3, cursor=None)
    rest = await queue.asking.find(Filter(), limit=3, cursor=first.cursor)

    assert [item.work_id for item in (*first.items, *rest.items)] == made[::-1]
    assert rest.cursor is None


async def test_the_list_can_be_narrowed(queue: Instance, node: Node):
    work_id = await submit(queue)
    await submit(queue, model_name="absent")
    await node.complete(await node.takes())

    done = await queue.asking.find(Filter(status=frozenset({WorkStatus.COMPLETED})), limit=10, cursor=None)
    there = await queue.asking.find(Filter(node_id="n1"), limit=10, cursor=None)

    assert [item.work_id for item in done.items] == [item.work_id for item in there.items] == [work_id]


async def test_ended_items_are_forgotten_but_not_run_again(house: House):
    rules = replace(RULES, ended_most=2, upkeep_seconds=1.0)
    async with house.marshaling(rules) as queue, house.bus("test") as bus:
        node = Node(house, bus, "n1")
        await node.open()
        for number in range(1, 6):
            await submit(queue, work_id=f"w{number}")
            await node.complete(await node.takes(number))
        await house.pass_time(2)
        assert "w1" not in queue.leading.present.term.memory.items
        assert await status_of(queue, "w5") is WorkStatus.COMPLETED

        await publish_plainly(bus, work_id="w1")
        await house.pass_time(1)
        assert len(node.taken) == 5
        with pytest.raises(Conflict):
            await submit(queue, work_id="w1", priority=0)


async def test_an_end_is_told_only_when_it_is_on_disk(house: House, queue: Instance):
    work_id = await submit(queue)
    house.server.stop()
    cancelling = asyncio.create_task(queue.marshaling.cancel(CancelWork(work_id=work_id)))
    asking = asyncio.create_task(queue.asking.result(work_id, 30))
    await house.settle()
    assert not cancelling.done()
    assert not asking.done()

    house.server.start()
    await house.pass_time(3)
    assert (await cancelling).status is WorkStatus.CANCELLED
    assert (await asking).status is WorkStatus.CANCELLED


async def test_strangers_in_the_log_cost_a_moment_and_no_work(house: House, queue: Instance, node: Node):
    kept = await submit(queue)
    given = await node.takes()
    async with house.server.connect("stranger") as transport:
        for subject in ("compute.work.epoch.v1", "compute.work.log.v1"):
            await transport.publish(subject, b"garbage", {})
            await transport.publish(subject, b"{}", {})
    await node.complete(given)
    await house.pass_time(2)

    assert queue.ended is None
    assert await status_of(queue, kept) is WorkStatus.COMPLETED
    assert await status_of(queue, await submit(queue)) is WorkStatus.ASSIGNED


async def test_a_node_that_lacks_memory_for_one_item_is_given_others(house: House):
    async with house.marshaling() as queue, house.bus("test") as bus:
        node = Node(house, bus, "n1")
        node.memory_left = 0
        await bus.publish(ANNOUNCE, announced("n1"))
        await node.open(slots=4)
        short = await submit(queue, requirements={"ram_mb": 100})
        other = await submit(queue)
        await node.takes()

        assert [given.work_id for given in node.taken] == [other]
        view = await view_of(queue, short)
        assert (view.status, view.attempts[0].counted) == (WorkStatus.PENDING, False)
        tries = len(node.offers)
        await house.pass_time(0.1)
        assert len(node.offers) == tries
        node.memory_left = 100
        assert (await node.takes(2)).work_id == short


async def test_the_receipt_names_a_field_that_does_not_exist(queue) -> None:
    told = await queue.marshaling.submit_many(SubmitMany(items=({"work_type": "chat", "priorty": 1, "zzz": None},)))

    (answer,) = told.answers
    assert answer.accepted.warnings == (
        "priorty: there is no such field, it was ignored; did you mean priority?",
        "zzz: there is no such field, it was ignored",
    )


async def test_the_receipt_names_a_requirement_that_does_not_exist(queue) -> None:
    told = await queue.marshaling.submit_many(
        SubmitMany(
            items=(
                {"work_type": "chat", "requirements": {"min_vram_per_gpu": 24000, "min_ram_mb": 1}},
                {"work_type": "chat", "requirements": {"\ud800" * 100: 1}},
                {"work_type": "chat", "requirements": {"min_ram_mb": 1}},
                {"work_type": "chat"},
            )
        )
    )

    mistyped, unreadable, right, none = (answer.accepted.warnings for answer in told.answers)
    ignored = "there is no such requirement, it was ignored; did you mean min_vram_mb_per_gpu?"
    assert mistyped == (f"requirements.min_vram_per_gpu: {ignored}",)
    assert len(unreadable[0]) < 1000
    assert encode(told)
    assert right == none == ()
