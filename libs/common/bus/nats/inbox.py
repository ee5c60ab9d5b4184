"""One subscription for every answer that is awaited: of requests and of appends."""

import asyncio
from typing import Any, Protocol

from nats.aio.msg import Msg

from libs.common.bus.nats.connection import Connection
from libs.common.bus.nats.link import Link
from libs.common.bus.transport import Headers, Incoming
from libs.common.errors import Disconnected, Forbidden, MeshError, NobodyAnswers, TimedOut

NO_HEADERS: Headers = {}
STATUS = "Status"
NO_RESPONDERS = "503"


class Waiting(Protocol):
    """Somebody who waits for an answer. `subject` is what was published on."""

    subject: str

    def answered(self, message: Msg) -> None: ...
    def refused(self, error: MeshError) -> None: ...
    def lost(self) -> None:
        """The connection it was sent on is gone."""
        ...


class Inbox:
    """A part of the link. The subject of an answer ends in the number that was drawn for the question."""

    def __init__(self, link: Link, unique: str) -> None:
        self._link = link
        self.prefix = f"{link.address.inbox_prefix}.{unique}"
        self._subject = f"{self.prefix}.*"
        self._cut = len(self.prefix) + 1
        self._waiting: dict[int, Waiting] = {}
        self._drawn = 0

    async def attach(self, connection: Connection) -> None:
        await connection.subscribe(self._subject, at_once=self._hear)

    def attached(self) -> None:
        """Questions are not asked again; who appends sees to it himself."""

    def detach(self) -> None:
        for waiting in list(self._waiting.values()):
            waiting.lost()

    def draw(self, waiting: Waiting) -> int:
        self._drawn += 1
        self._waiting[self._drawn] = waiting
        return self._drawn

    def forget(self, number: int) -> None:
        self._waiting.pop(number, None)

    def reply_subject(self, number: int) -> str:
        return f"{self.prefix}.{number}"

    def denied(self, lowered: str, error: Forbidden) -> bool:
        """Tell those who published on the subject. False when nobody did."""
        concerned = [waiting for waiting in self._waiting.values() if waiting.subject.lower() == lowered]
        for waiting in concerned:
            waiting.refused(error)
        return bool(concerned)

    def close(self) -> None:
        for waiting in list(self._waiting.values()):
            waiting.refused(Disconnected("The connection to NATS was closed by us", subject=waiting.subject))

    async def request(self, subject: str, payload: bytes, headers: Headers | None, timeout: float) -> Msg:
        """Raises `NobodyAnswers`, `TimedOut`, `Forbidden`, `Disconnected`, `Malformed`."""
        question = _Question(subject)
        number = self.draw(question)
        timer = asyncio.get_running_loop().call_later(timeout, question.late, timeout)
        try:
            await self._link.send(subject, payload, headers, self.reply_subject(number), within=timeout)
            question.sent = True
            message = await question.answer
        finally:
            timer.cancel()
            self.forget(number)
            looked_at(question.answer)
        if message.headers is not None and message.headers.get(STATUS) == NO_RESPONDERS and not message.data:
            raise NobodyAnswers(f"Nobody answers on {subject}", subject=subject)
        return message

    def _hear(self, message: Msg) -> bool:
        number = message.subject[self._cut :]
        waiting = self._waiting.get(int(number)) if number.isdecimal() else None
        if waiting is not None:
            waiting.answered(message)
        return True


class _Question:
    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.sent = False
        self.answer: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()

    def answered(self, message: Msg) -> None:
        if not self.answer.done():
            self.answer.set_result(message)

    def refused(self, error: MeshError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)

    def late(self, timeout: float) -> None:
        self.refused(TimedOut(f"No answer on {self.subject} within {timeout:g} s", subject=self.subject))

    def lost(self) -> None:
        if self.sent:
            self.refused(
                Disconnected(f"The connection was lost before {self.subject} was answered", subject=self.subject)
            )


def looked_at(outcome: "asyncio.Future[Any]") -> None:
    """Nobody waits for it any more (another error came first): that is no reason for asyncio to complain."""
    if outcome.done() and not outcome.cancelled():
        outcome.exception()


def incoming(message: Msg) -> Incoming:
    return Incoming(
        subject=message.subject,
        payload=message.data,
        headers=message.headers or NO_HEADERS,
        reply=message.reply or None,
    )
