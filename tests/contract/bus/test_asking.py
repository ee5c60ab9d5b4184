"""Request and serve."""

import asyncio
import json

import pytest

from libs.common.bus.observer import Correlated, correlation_id
from libs.common.errors import (
    Conflict,
    Internal,
    Malformed,
    MeshError,
    NobodyAnswers,
    NotFound,
    TimedOut,
    TooLarge,
    WrongRevision,
)
from tests.contract.bus.parts import Answer, Heard, Mesh, Note, soon
from tests.recording import RecordingObserver


async def test_a_question_is_answered(mesh: Mesh) -> None:
    call = mesh.call()

    async def shout(note: Note) -> Answer:
        return Answer(text=note.text.upper())

    await (await mesh.bus("owner")).serve(call, shout)

    assert await (await mesh.bus("asker")).request(call, Note(text="hello")) == Answer(text="HELLO")


async def test_the_node_that_is_meant_answers(mesh: Mesh) -> None:
    call = mesh.call(per_node=True)
    for node_id in ("node-a", "a node with spaces.and.dots"):
        bus = await mesh.bus(node_id)

        async def answer(note: Note, node_id: str = node_id) -> Answer:
            return Answer(text=node_id)

        await bus.serve(call, answer, node_id=node_id)

    asker = await mesh.bus()
    for node_id in ("a node with spaces.and.dots", "node-a"):
        assert (await asker.request(call, Note(text="?"), node_id=node_id)).text == node_id


async def test_a_question_without_the_node_it_needs_is_a_bug_of_the_caller(mesh: Mesh) -> None:
    with pytest.raises(ValueError, match="wants node id"):
        await (await mesh.bus()).request(mesh.call(per_node=True), Note(text="?"))


async def test_instances_share_the_questions(mesh: Mesh) -> None:
    call, answered = mesh.call(), Heard()

    async def answer(note: Note) -> Answer:
        await answered(note)
        return Answer(text=note.text)

    for _ in range(3):
        await (await mesh.bus()).serve(call, answer)
    asker = await mesh.bus()
    for number in range(12):
        await asker.request(call, Note(text=str(number)))

    assert sorted(await answered.texts(12)) == sorted(str(number) for number in range(12))
    assert answered.empty


@pytest.mark.parametrize(
    "error",
    [
        NotFound("there is no such thing", thing="x"),
        Conflict("it has ended"),
        WrongRevision("somebody was first", last=7),
        Malformed("`count` is wrong", fields=[{"field": "count"}]),
        NotFound("with a word for `message` in its details and\r\na second line", self=1),
    ],
    ids=lambda error: f"{type(error).__name__}-{len(error.message)}",
)
async def test_a_refusal_arrives_as_the_error_it_was(mesh: Mesh, error: MeshError) -> None:
    call = mesh.call()

    async def refuse(note: Note) -> Answer:
        raise error

    await (await mesh.bus()).serve(call, refuse)
    with pytest.raises(MeshError) as caught:
        await (await mesh.bus()).request(call, Note(text="?"))

    assert type(caught.value) is type(error)
    assert (caught.value.message, caught.value.details) == (error.message, error.details)


async def test_a_refusal_can_be_read_by_tools_for_nats_services(mesh: Mesh) -> None:
    call = mesh.call()

    async def refuse(note: Note) -> Answer:
        raise NotFound("there is no such thing,\r\nInjected: yes")

    await (await mesh.bus()).serve(call, refuse)
    answer = await (await mesh.transport()).request(call.subject, b'{"text":"?"}', {}, timeout=2)

    assert answer.headers["Nats-Service-Error-Code"] == "404"
    assert answer.headers["Nats-Service-Error"] == "not_found: there is no such thing,  Injected: yes"
    assert "Injected" not in answer.headers
    assert json.loads(answer.payload)["error"]["code"] == "not_found"


async def test_a_bug_is_answered_without_its_detail(mesh: Mesh) -> None:
    call, observer = mesh.call(), RecordingObserver()

    async def break_down(note: Note) -> Answer:
        raise ZeroDivisionError("the password is 1234")

    await (await mesh.bus(observer=observer)).serve(call, break_down)
    with pytest.raises(Internal, match=r"^internal error$"):
        await (await mesh.bus()).request(call, Note(text="?"))

    assert observer.handled == [("serve", call.subject, "internal")]


async def test_details_that_are_no_json_cost_nobody_the_answer(mesh: Mesh) -> None:
    call = mesh.call()
    circle: list[object] = []
    circle.append(circle)

    async def refuse(note: Note) -> Answer:
        raise NotFound("gone", circle=circle)

    await (await mesh.bus()).serve(call, refuse)
    with pytest.raises(NotFound, match="gone"):
        await (await mesh.bus()).request(call, Note(text="?"))


async def test_asking_nobody_is_told_at_once(mesh: Mesh) -> None:
    observer, call = RecordingObserver(), mesh.call()
    bus = await mesh.bus(observer=observer)

    with pytest.raises(NobodyAnswers):
        await soon(bus.request(call, Note(text="?"), timeout=60))

    assert observer.sendings == [("request", call.subject, "nobody_answers")]


async def test_an_answer_that_does_not_come_is_timed_out(mesh: Mesh) -> None:
    call = mesh.call()

    async def think(note: Note) -> Answer:
        await asyncio.Event().wait()
        return Answer(text="never")

    await (await mesh.bus()).serve(call, think)
    with pytest.raises(TimedOut):
        await (await mesh.bus()).request(call, Note(text="?"), timeout=0.1)


async def test_a_slow_answer_does_not_hold_up_the_others(mesh: Mesh) -> None:
    call, slow = mesh.call(), asyncio.Event()

    async def answer(note: Note) -> Answer:
        if note.text == "slow":
            await slow.wait()
        return Answer(text=note.text)

    await (await mesh.bus()).serve(call, answer)
    asker = await mesh.bus()
    waiting = asyncio.create_task(asker.request(call, Note(text="slow"), timeout=10))
    for number in range(5):
        assert (await asker.request(call, Note(text=str(number)))).text == str(number)
    assert not waiting.done()
    slow.set()

    assert (await soon(waiting)).text == "slow"


async def test_a_slow_answer_is_given_before_the_service_leaves(mesh: Mesh) -> None:
    call, heard, slow = mesh.call(), Heard(), asyncio.Event()

    async def answer(note: Note) -> Answer:
        await heard(note)
        await slow.wait()
        return Answer(text=note.text)

    owner = await mesh.bus()
    await owner.serve(call, answer)
    asker = await mesh.bus()
    waiting = asyncio.create_task(asker.request(call, Note(text="slow"), timeout=10))
    await heard.next()
    draining = asyncio.create_task(owner.drain(4))
    await asyncio.sleep(0)
    slow.set()

    assert (await soon(waiting)).text == "slow"
    await soon(draining)


async def test_after_draining_nobody_answers(mesh: Mesh) -> None:
    call = mesh.call()

    async def answer(note: Note) -> Answer:
        return Answer(text=note.text)

    owner = await mesh.bus()
    await owner.serve(call, answer)
    await owner.drain(4)

    with pytest.raises(NobodyAnswers):
        await (await mesh.bus()).request(call, Note(text="?"))


async def test_the_asked_sees_the_correlation_id_of_the_asker(mesh: Mesh) -> None:
    call = mesh.call()

    async def tell(note: Note) -> Answer:
        return Answer(text=correlation_id() or "")

    await (await mesh.bus()).serve(call, tell)
    with Correlated("abc"):
        assert (await (await mesh.bus()).request(call, Note(text="?"))).text == "abc"


async def test_an_answer_that_cannot_be_read_is_malformed(mesh: Mesh) -> None:
    call = mesh.call()
    for payload in (b"\xff", b"[]", b'{"text":1}'):
        asked, answering = await mesh.transport(), Heard()
        await asked.subscribe(call.subject, answering, group=payload.hex())
        waiting = asyncio.create_task((await mesh.bus()).request(call, Note(text="?")))
        await asked.publish((await answering.next()).reply, payload, {})
        with pytest.raises(Malformed):
            await soon(waiting)
        await asked.stop_listening()


async def test_an_error_of_a_responder_without_our_headers_is_understood(mesh: Mesh) -> None:
    call, answering, asked = mesh.call(), Heard(), await mesh.transport()
    await asked.subscribe(call.subject, answering)
    waiting = asyncio.create_task((await mesh.bus()).request(call, Note(text="?")))
    await asked.publish((await answering.next()).reply, b'{"error":{"code":"not_found","message":"gone"}}', {})

    with pytest.raises(NotFound, match="gone"):
        await soon(waiting)


async def test_a_code_of_a_newer_version_is_passed_on(mesh: Mesh) -> None:
    call, answering, asked = mesh.call(), Heard(), await mesh.transport()
    await asked.subscribe(call.subject, answering)
    waiting = asyncio.create_task((await mesh.bus()).request(call, Note(text="?")))
    body = b'{"error":{"code":"from_the_future","message":"?"}}'
    await asked.publish((await answering.next()).reply, body, {"Nats-Service-Error-Code": "499"})

    with pytest.raises(MeshError) as caught:
        await soon(waiting)
    assert caught.value.code == "from_the_future"


async def test_a_question_that_is_too_large_is_not_sent(mesh: Mesh) -> None:
    with pytest.raises(TooLarge):
        await (await mesh.bus()).request(mesh.call(), Note(text="x" * 1024 * 1024))


async def test_an_answer_that_is_too_large_is_told(mesh: Mesh) -> None:
    call = mesh.call()

    async def answer(note: Note) -> Answer:
        return Answer(text="x" * 1024 * 1024)

    await (await mesh.bus()).serve(call, answer)
    with pytest.raises(TooLarge):
        await (await mesh.bus()).request(call, Note(text="?"))


async def test_a_question_nobody_waits_for_is_still_handled(mesh: Mesh) -> None:
    call, heard = mesh.call(), Heard()

    async def answer(note: Note) -> Answer:
        await heard(note)
        raise NotFound("nobody will know")

    await (await mesh.bus()).serve(call, answer)
    await (await mesh.transport()).publish(call.subject, b'{"text":"alone"}', {})

    assert await heard.texts(1) == ["alone"]
