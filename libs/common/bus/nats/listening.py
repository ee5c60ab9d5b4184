"""What we hear and what we answer: kept as data, and subscribed anew on every connection."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import structlog
from nats import errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.micro.request import ERROR_CODE_HEADER, Request
from nats.micro.service import EndpointStats, Service, ServiceConfig

from libs.common.bus.nats.connection import Connection
from libs.common.bus.nats.inbox import incoming
from libs.common.bus.nats.link import Link
from libs.common.bus.transport import Deliver, Endpoint, Headers, Start
from libs.common.errors import Disconnected, TimedOut

UNANSWERED_KEPT = 8192
STOP_SECONDS = 5.0
_log = structlog.get_logger()


class _Wanted:
    """A subscription that is to exist. `on` is the number of the connection it was made on."""

    def __init__(self, subject: str, group: str | None, deliver: Deliver, start: Start | None) -> None:
        self.subject = subject
        self.group = group
        self.deliver = deliver
        self.start = start
        self.on = 0
        self.subscription: Subscription | None = None

    async def hear(self, message: Msg) -> None:
        try:
            await self.deliver(incoming(message))
        except Exception:  # noqa: BLE001  # a bug of the receiver must not end the subscription
            _log.exception("delivery_failed", subject=self.subject)

    def take(self, message: Msg) -> bool:
        return self.start is not None and self.start(incoming(message))

    async def open(self, connection: Connection, micro: "Micro") -> None:
        self.subscription = await connection.subscribe(self.subject, self.hear, group=self.group, at_once=self.take)


class _Served(_Wanted):
    """An endpoint. It counts for itself, because requests are answered later than nats-py thinks."""

    def __init__(self, endpoint: Endpoint, deliver: Deliver, start: Start | None, unanswered: "Unanswered") -> None:
        super().__init__(endpoint.subject, endpoint.group, deliver, start)
        self.endpoint = endpoint
        self.requests = self.answers = self.errors = self.nanoseconds = 0
        self.last_error = ""
        self._unanswered = unanswered

    async def answer(self, request: Request) -> None:
        self._note(request._msg)
        await self.hear(request._msg)

    def take(self, message: Msg) -> bool:
        taken = super().take(message)
        if taken:
            self._note(message)
        return taken

    def _note(self, message: Msg) -> None:
        self.requests += 1
        if message.reply:
            self._unanswered.note(message.reply, self)

    async def open(self, connection: Connection, micro: "Micro") -> None:
        try:
            await micro.add(self, connection)
        except errors.Error as error:
            raise Disconnected("The connection to NATS was lost") from error

    def report(self, stats: EndpointStats) -> dict[str, Any]:
        stats.num_requests = self.requests
        stats.num_errors = self.errors
        stats.processing_time = self.nanoseconds
        stats.average_processing_time = self.nanoseconds // self.answers if self.answers else 0
        stats.last_error = self.last_error
        return {"answered": self.answers}


class Unanswered:
    """Which endpoint owes which answer, since when: bounded, for some requests are never answered."""

    def __init__(self) -> None:
        self._owed: OrderedDict[str, tuple[_Served, int]] = OrderedDict()

    def note(self, reply: str, served: _Served) -> None:
        self._owed[reply] = (served, time.perf_counter_ns())
        if len(self._owed) > UNANSWERED_KEPT:
            self._owed.popitem(last=False)

    def published(self, subject: str, headers: Headers) -> None:
        owed = self._owed.pop(subject, None) if self._owed else None
        if owed is not None:
            served, since = owed
            served.answers += 1
            served.nanoseconds += time.perf_counter_ns() - since
            if ERROR_CODE_HEADER in headers:
                served.errors += 1
                served.last_error = headers[ERROR_CODE_HEADER]


class Micro:
    """The service as `nats micro` sees it: one per transport, with the same id on every connection."""

    def __init__(self, name: str, version: str, unique: str) -> None:
        self._config = ServiceConfig(name=name, version=version, stats_handler=self._report)
        self._unique = unique
        self._served: dict[str, _Served] = {}
        self._service: Service | None = None
        self._on = 0

    async def add(self, served: _Served, connection: Connection) -> None:
        self._served[served.subject] = served
        if self._service is None or self._on != connection.number:
            self._on = connection.number
            self._service = Service(connection.client, self._config)
            self._service._id = self._unique
            await self._service.start()
        await self._service.add_endpoint(
            name=served.endpoint.name,
            subject=served.subject,
            queue_group=served.group,
            handler=served.answer,
            metadata=dict(served.endpoint.metadata),
        )
        served.subscription = self._service._endpoints[-1]._subscription
        if served.subscription is not None:
            connection.take_at_once(served.subscription, served.take)

    def remove(self, served: _Served) -> None:
        self._served.pop(served.subject, None)
        if self._service is not None:
            kept = [one for one in self._service._endpoints if one._subscription is not served.subscription]
            self._service._endpoints = kept

    def stop(self) -> list[Subscription]:
        """Returns what is to be unsubscribed of the service's own."""
        own = [] if self._service is None else list(self._service._subscriptions.values())
        self._service = None
        self._served.clear()
        return own

    def _report(self, stats: EndpointStats) -> Any:
        served = self._served.get(stats.subject)
        return None if served is None else served.report(stats)


class Listening:
    """A part of the link."""

    def __init__(self, link: Link, micro: Micro) -> None:
        self._link = link
        self._micro = micro
        self._wanted: list[_Wanted] = []
        self.unanswered = Unanswered()

    async def attach(self, connection: Connection) -> None:
        for wanted in list(self._wanted):
            await self._open(wanted, connection)

    def attached(self) -> None:
        """Nothing is left to do: `attach` did it."""

    def detach(self) -> None:
        """What is wanted stays; the next connection gets it."""

    async def subscribe(self, subject: str, deliver: Deliver, group: str | None, start: Start | None) -> None:
        await self._establish(_Wanted(subject, group, deliver, start))

    async def serve(self, endpoint: Endpoint, deliver: Deliver, start: Start | None) -> None:
        await self._establish(_Served(endpoint, deliver, start, self.unanswered))

    async def catch_up(self, subjects: Sequence[str], timeout: float) -> None:
        """Raises `TimedOut`, `Disconnected`."""
        connection = await self._link.connection(timeout)
        await connection.flush(timeout)
        heard = [wanted.subscription for wanted in self._wanted if wanted.subject in subjects and wanted.subscription]
        if not await connection.handled(heard, timeout):
            raise TimedOut(f"What was told is not handled within {timeout:g} s", subjects=list(subjects))

    async def stop(self) -> None:
        """End all; what has arrived already is still handed over."""
        connection = self._link.current
        ending = [wanted.subscription for wanted in self._wanted if wanted.subscription is not None]
        self._wanted.clear()
        ending += self._micro.stop()
        if connection is not None:
            await asyncio.gather(*(connection.unsubscribe(one, handle_pending_within=STOP_SECONDS) for one in ending))

    async def _establish(self, wanted: _Wanted) -> None:
        """Raises `Disconnected`, `Forbidden`, `Malformed`; then it is not wanted any more."""
        self._wanted.append(wanted)
        try:
            await self._known_to_the_server(wanted)
        except BaseException:
            await self._withdraw(wanted)
            raise

    async def _withdraw(self, wanted: _Wanted) -> None:
        if wanted in self._wanted:
            self._wanted.remove(wanted)
        if isinstance(wanted, _Served):
            self._micro.remove(wanted)
        connection = self._link.current
        if connection is not None and wanted.subscription is not None and wanted.on == connection.number:
            await connection.unsubscribe(wanted.subscription)

    async def _known_to_the_server(self, wanted: _Wanted) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._link.timing.patience
        while True:
            connection = await self._link.connection(deadline - loop.time())
            try:
                await self._open(wanted, connection)
                await connection.flush(self._link.timing.silence)
            except Disconnected as error:
                _log.debug("subscription_waits_for_connection", subject=wanted.subject, reason=str(error))
                connection.end(str(error))
                continue
            self._link.check()
            return

    async def _open(self, wanted: _Wanted, connection: Connection) -> None:
        if wanted.on != connection.number:
            await wanted.open(connection, self._micro)
            wanted.on = connection.number
