"""JetStream's own API, as JSON requests: streams, single messages, consumers."""

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from nats.aio.msg import Msg

from libs.common.bus.nats.inbox import NO_HEADERS, STATUS, Inbox
from libs.common.bus.nats.link import Link
from libs.common.bus.nats.refusals import TRY_AGAIN, StreamMissing, refusal
from libs.common.bus.transport import MESSAGE_ID_HEADER, Headers, Stored, StreamState
from libs.common.errors import Disconnected, MeshError, NobodyAnswers, NotFound, TimedOut, Unavailable

API = "$JS.API"
CALL_SECONDS = 5.0
ONE_TRY_SECONDS = 2.0
PAUSE_SECONDS = 0.25
NANOSECONDS = 1_000_000_000
_log = structlog.get_logger()
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class JetStream:
    """Every call may safely be made twice, so it is repeated while JetStream is away, up to `timeout`.

    `make_again` is asked when there is no such stream: whether there is one now.
    """

    def __init__(self, link: Link, inbox: Inbox) -> None:
        self._link = link
        self._inbox = inbox
        self.make_again: Callable[[str], Awaitable[bool]] = _cannot

    async def call(
        self, verb: str, request: Mapping[str, Any] | None = None, *, about: str, timeout: float = CALL_SECONDS
    ) -> dict[str, Any]:
        """`about` is the stream, or stream/consumer. Raises what the server answers as an error, `Unavailable` when
        JetStream stays away, `Forbidden`."""
        try:
            return await self.call_once(verb, request, about=about, timeout=timeout)
        except StreamMissing:
            if not await self.make_again(about.partition("/")[0]):
                raise
        return await self.call_once(verb, request, about=about, timeout=timeout)

    async def call_once(
        self, verb: str, request: Mapping[str, Any] | None = None, *, about: str, timeout: float = CALL_SECONDS
    ) -> dict[str, Any]:
        """The same, where a stream may be missing."""
        payload = b"" if request is None else json.dumps(request).encode()
        message = await self._ask(f"{API}.{verb}", payload, about, timeout)
        answer: dict[str, Any] = json.loads(message.data)
        if (error := answer.get("error")) is not None:
            raise refusal(error, about)
        return answer

    async def _ask(self, subject: str, payload: bytes, about: str, timeout: float) -> Msg:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while True:
            self._link.check_open()
            left = max(deadline - loop.time(), 0.001)
            try:
                message = await self._inbox.request(subject, payload, None, min(left, ONE_TRY_SECONDS))
                if not _try_again(message):
                    return message
                why: MeshError = Unavailable("JetStream has no leader", about=about)
            except (Disconnected, NobodyAnswers, TimedOut) as error:
                why = error
            if loop.time() + PAUSE_SECONDS >= deadline:
                if isinstance(why, NobodyAnswers):
                    raise Unavailable(f"JetStream does not answer about {about}", about=about) from why
                raise why
            await asyncio.sleep(PAUSE_SECONDS)

    async def info(self, stream: str) -> dict[str, Any]:
        """Raises `NotFound`."""
        return await self.call(f"STREAM.INFO.{stream}", about=stream)

    async def state(self, stream: str) -> StreamState:
        info = await self.info(stream)
        state = info["state"]
        return StreamState(
            created=datetime.fromisoformat(_to_microseconds(info["created"])),
            messages=state["messages"],
            bytes=state["bytes"],
            max_bytes=info["config"]["max_bytes"],
            first_sequence=state["first_seq"],
            last_sequence=state["last_seq"],
        )

    async def subjects(self, stream: str, pattern: str) -> list[str]:
        """The server tells them in pages."""
        found: list[str] = []
        while True:
            request = {"subjects_filter": pattern, "offset": len(found)}
            answer = await self.call(f"STREAM.INFO.{stream}", request, about=stream)
            page = answer["state"].get("subjects") or {}
            found.extend(page)
            if not page or len(found) >= answer.get("total", 0):
                return found

    async def message(self, stream: str, sequence: int) -> Stored | None:
        """A replica may answer; when it has nothing, the leader is asked."""
        payload = json.dumps({"seq": sequence}).encode()
        message = await self._ask(f"{API}.DIRECT.GET.{stream}", payload, stream, CALL_SECONDS)
        headers = message.headers or NO_HEADERS
        if "Nats-Sequence" not in headers:
            return await self._from_leader(stream, {"seq": sequence})
        return Stored(
            stream=stream,
            subject=headers["Nats-Subject"],
            sequence=int(headers["Nats-Sequence"]),
            payload=message.data,
            headers={name: value for name, value in headers.items() if name not in _ADDED_BY_DIRECT_GET},
            at=datetime.fromisoformat(_to_microseconds(headers["Nats-Time-Stamp"])),
        )

    async def last(self, stream: str, subject: str) -> Stored | None:
        """Asked of the leader: a replica may not know the newest yet."""
        return await self._from_leader(stream, {"last_by_subj": subject})

    async def _from_leader(self, stream: str, which: Mapping[str, Any]) -> Stored | None:
        try:
            found = (await self.call(f"STREAM.MSG.GET.{stream}", which, about=stream))["message"]
        except StreamMissing:
            raise
        except NotFound:
            return None
        return Stored(
            stream=stream,
            subject=found["subject"],
            sequence=found["seq"],
            payload=base64.b64decode(found.get("data", "")),
            headers=_parse_headers(base64.b64decode(found.get("hdrs", ""))),
            at=datetime.fromisoformat(_to_microseconds(found["time"])),
        )

    async def purge(self, stream: str, below: int, subject: str | None) -> None:
        request: dict[str, Any] = {"seq": below}
        if subject is not None:
            request["filter"] = subject
        await self.call(f"STREAM.PURGE.{stream}", request, about=stream)

    async def create_consumer(self, stream: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """Create it, or find that it is there with this configuration. Raises `NotFound`, `Conflict`."""
        subject = f"CONSUMER.CREATE.{stream}.{config['name']}"
        if (only := config.get("filter_subject")) is not None:
            subject += f".{only}"
        return await self.call(subject, {"stream_name": stream, "config": config}, about=f"{stream}/{config['name']}")

    async def forget_consumer(self, stream: str, name: str) -> None:
        """Ask for its deletion and do not wait: the server also lets go of it by itself when nobody pulls."""
        connection = self._link.current
        if connection is not None:
            try:
                await connection.publish(f"{API}.CONSUMER.DELETE.{stream}.{name}", b"", None)
            except Disconnected as error:
                _log.debug("consumer_left_to_the_server", stream=stream, consumer=name, reason=str(error))

    async def kept_under(self, stream: str, subject: str, message_id: str, after: int) -> int | None:
        """The sequence of the first message on the subject after `after`, if it has this message id."""
        found = await self._from_leader(stream, {"seq": after + 1, "next_by_subj": subject})
        return found.sequence if found is not None and found.headers.get(MESSAGE_ID_HEADER) == message_id else None


async def _cannot(stream: str) -> bool:
    return False


_ADDED_BY_DIRECT_GET = frozenset(
    {"Nats-Stream", "Nats-Subject", "Nats-Sequence", "Nats-Time-Stamp", "Nats-Num-Pending"}
)


def _try_again(message: Msg) -> bool:
    if message.headers and message.headers.get(STATUS):
        return False
    return (
        b'"err_code":' in message.data[:200] and json.loads(message.data).get("error", {}).get("err_code") in TRY_AGAIN
    )


def _to_microseconds(moment: str) -> str:
    """The server writes nanoseconds; Python's datetime reads microseconds."""
    whole, dot, fraction = moment.removesuffix("Z").partition(".")
    return f"{whole}{dot}{fraction[:6]}+00:00"


def at_nanoseconds(since_epoch: int) -> datetime:
    return _EPOCH + timedelta(microseconds=since_epoch // 1000)


def _parse_headers(block: bytes) -> Headers:
    headers: dict[str, str] = {}
    for line in block.decode("utf-8", "replace").split("\r\n")[1:]:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip()] = value.strip()
    return headers
