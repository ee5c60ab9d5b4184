"""Questions over a pair of sockets, of which the test holds the other end."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator

import pytest

from libs.hardware import asking
from libs.hardware.asking import Questions


@pytest.fixture
async def ends() -> AsyncIterator[tuple[Questions, socket.socket]]:
    ours, its = socket.socketpair()
    its.settimeout(5)
    questions = Questions(ours)
    with its:
        yield questions, its
        questions.close()


def answer(number: int, **told: object) -> bytes:
    return json.dumps({"id": number, **told}).encode() + b"\n"


async def test_a_question_is_written_in_the_step_that_asks_it(ends: tuple[Questions, socket.socket]):
    questions, its = ends
    questions.ask("gpus")
    questions.ask("used")

    heard = [json.loads(line) for line in its.recv(1000).splitlines()]
    assert heard == [{"id": 1, "ask": "gpus"}, {"id": 2, "ask": "used"}]


async def test_each_answer_finds_who_asked_also_when_it_comes_in_parts(ends: tuple[Questions, socket.socket]):
    questions, its = ends
    first, second = questions.ask("gpus"), questions.ask("used")
    its.sendall(answer(2, used={})[:5])
    await asyncio.sleep(0.01)
    its.sendall(answer(2, used={})[5:] + answer(1, gpus=[]))

    assert (await first, await second) == ({"id": 1, "gpus": []}, {"id": 2, "used": {}})


async def test_an_answer_for_which_nobody_waits_any_more_is_passed_over(ends: tuple[Questions, socket.socket]):
    questions, its = ends
    questions.ask("gpus").cancel()
    later = questions.ask("used")
    its.sendall(answer(1) + answer(7) + answer(2))

    assert await later == {"id": 2}


async def test_an_answer_may_be_longer_than_is_read_at_once(ends: tuple[Questions, socket.socket]):
    questions, its = ends
    asked = questions.ask("gpus")
    its.setblocking(False)
    await asyncio.get_running_loop().sock_sendall(its, answer(1, names=["x" * 1000] * 2000))

    assert len((await asked)["names"]) == 2000


@pytest.mark.parametrize(
    ("said", "error"),
    [(b"nonsense\n", ValueError), (b'{"used": {}}\n', KeyError), (b"[]\n", TypeError), (b"x" * 300, ValueError)],
)
async def test_who_waits_is_told_when_no_sense_can_be_made_of_what_is_said(
    ends: tuple[Questions, socket.socket], said: bytes, error: type[Exception], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(asking, "LONGEST_LINE", 200)
    questions, its = ends
    asked = [questions.ask("used") for _ in range(2)]
    its.sendall(said)

    told = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(each) for each in told if isinstance(each, error)] == [type(told[0])] * 2
    with pytest.raises(OSError, match="descriptor"):
        await questions.ask("used")


async def test_all_who_wait_are_told_when_the_other_end_is_gone(ends: tuple[Questions, socket.socket]):
    questions, its = ends
    asked = [questions.ask("used") for _ in range(2)]
    its.close()

    told = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(each, OSError) for each in told)
