"""Keeps one connection to NATS alive, and gives everything that lives on it to the next one."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from libs.common.bus.nats.address import Address, user_name
from libs.common.bus.nats.connection import Connection
from libs.common.bus.transport import Headers
from libs.common.errors import Disconnected, Forbidden, MeshError, Unauthorized, WrongSetting

TELL_AGAIN_SECONDS = 30.0
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """All in seconds.

    `retry`: pause between attempts to connect. `watchdog`: how often a silent connection is asked for a sign of life,
    `silence`: how long that may take. `auth_grace`: how long refused credentials may stay so before `failed` raises.
    `patience`: how long a call without a timeout of its own waits for a connection; `publish_patience` the same for
    `publish`.
    """

    retry: float = 0.25
    watchdog: float = 5.0
    silence: float = 2.0
    auth_grace: float = 60.0
    patience: float = 10.0
    publish_patience: float = 2.0


class Part(Protocol):
    """Something that must be made anew on every connection. It keeps what is wanted as data."""

    async def attach(self, connection: Connection) -> None: ...
    def attached(self) -> None:
        """The connection is ready for use."""
        ...

    def detach(self) -> None: ...


class Link:
    """`run` is its life; everything else may be called at any time."""

    def __init__(self, address: Address, timing: Timing) -> None:
        self.address = address
        self.timing = timing
        self.connections = 0
        self.max_payload = 1024 * 1024
        self.on_publish_denied: Callable[[str, Forbidden], bool] = lambda _subject, _error: False
        self._parts: Sequence[Part] = ()
        self._current: Connection | None = None
        self._up = asyncio.Event()
        self._fatal: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._problem: str | None = "not connected yet"
        self._closed = False
        self._opened = 0
        self._away_since = asyncio.get_running_loop().time()
        self._servers = list(address.servers)
        self._refused_since: float | None = None
        self._told: type[MeshError] | None = None
        self._told_at = 0.0

    def carry(self, parts: Sequence[Part]) -> None:
        self._parts = parts

    @property
    def current(self) -> Connection | None:
        """The connection, if there is one that works."""
        current = self._current
        return current if current is not None and current.usable else None

    def problem(self) -> str | None:
        if self._fatal.done() and self._fatal.exception() is not None:
            return str(self._fatal.exception())
        return None if self.current is not None else self._problem or "the connection was lost"

    @property
    def away_seconds(self) -> float | None:
        return None if self.current is not None else asyncio.get_running_loop().time() - self._away_since

    async def failed(self) -> None:
        """Never returns; raises the reason why this can never work."""
        await asyncio.shield(self._fatal)

    def fail(self, error: BaseException) -> None:
        if not self._fatal.done():
            self._fatal.set_exception(error)
            self._fatal.exception()  # looked at: who does not wait for `failed` is told by `problem`

    def check(self) -> None:
        """Raises what `failed` raises."""
        if self._fatal.done():
            self._fatal.result()

    def check_open(self) -> None:
        """Raises `Disconnected` once we are closed."""
        if self._closed:
            raise Disconnected("The connection to NATS was closed by us")

    def close(self) -> None:
        """Nobody waits for a connection any more."""
        self._closed = True
        self._up.set()

    async def connection(self, within: float | None) -> Connection:
        """The connection, once there is one. Raises `Disconnected` after `within` seconds, or when we are closed."""
        try:
            async with asyncio.timeout(within):
                while (current := self.current) is None:
                    self.check_open()
                    self._up.clear()  # it may be set for a connection that was lost a moment ago
                    await self._up.wait()
        except TimeoutError as error:
            raise Disconnected(self.problem() or "There is no connection to NATS") from error
        return current

    async def first_connection(self) -> None:
        """Wait for it, however long that takes. Raises what `failed` raises."""
        waiting = asyncio.ensure_future(self.connection(None))
        try:
            either: set[asyncio.Future[Any]] = {waiting, self._fatal}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            self.check()
        finally:
            waiting.cancel()

    async def send(self, subject: str, payload: bytes, headers: Headers | None, reply: str, *, within: float) -> None:
        """Publish on this connection or, if it is away, the next one. Raises `Disconnected`, `Malformed`."""
        connection = self.current
        if connection is not None:
            try:
                return await connection.publish(subject, payload, headers, reply)
            except Disconnected:
                _log.debug("nats_publish_waits", subject=subject)
        connection = await self.connection(within)
        return await connection.publish(subject, payload, headers, reply)

    async def run(self) -> None:
        """Connect, restore, watch, for ever."""
        while True:
            try:
                connection = await self._open()
            except MeshError as error:
                self._note_refusal(error)
                await asyncio.sleep(self.timing.retry)
                continue
            opened = asyncio.get_running_loop().time()
            try:
                await self._use(connection)
            except Disconnected as error:
                self._problem = str(error)
            finally:
                if self._current is not None:
                    self._away_since = asyncio.get_running_loop().time()
                self._current = None
                self._up.clear()
                for part in self._parts:
                    part.detach()
                await connection.discard()
            _log.warning("nats_connection_lost", server=str(self.address), reason=self._problem)
            if asyncio.get_running_loop().time() - opened < self.timing.retry:
                await asyncio.sleep(self.timing.retry)  # a server that hangs up at once must not be stormed

    async def _open(self) -> Connection:
        self._opened += 1
        known = list(dict.fromkeys([*self.address.servers, *self._servers]))
        return await Connection.open(self.address, self._opened, servers=known, on_denied=self._denied)

    def _note_refusal(self, error: MeshError) -> None:
        now = asyncio.get_running_loop().time()
        if type(error) is not self._told or now - self._told_at >= TELL_AGAIN_SECONDS:
            self._told, self._told_at = type(error), now
            _log.warning("nats_connection_refused", server=str(self.address), reason=str(error))
        self._problem = str(error)
        if isinstance(error, Unauthorized | WrongSetting):
            self._refused_since = self._refused_since if self._refused_since is not None else now
            if self.connections == 0 or now - self._refused_since >= self.timing.auth_grace:
                self.fail(error)

    async def _use(self, connection: Connection) -> None:
        for part in self._parts:
            await part.attach(connection)
        await connection.flush(self.timing.silence)
        self._servers = connection.servers
        self.max_payload = connection.max_payload
        self._refused_since = self._problem = self._told = None
        self.connections += 1
        self._current = connection
        self._up.set()
        for part in self._parts:
            part.attached()
        _log.info("nats_connected", server=str(self.address), connections=self.connections)
        await self._watch(connection)

    async def _watch(self, connection: Connection) -> None:
        while True:
            await asyncio.wait({connection.ended}, timeout=self.timing.watchdog)
            if connection.ended.done():
                raise Disconnected(f"The connection was lost: {connection.ended.result()}")
            await connection.flush(self.timing.silence)

    def _denied(self, what: str, subject: str) -> None:
        user = user_name(self.address)
        verb = "publish" if what == "publish" else "subscribe"
        grant = f'{verb}: {{ allow: ["{subject}"] }}'
        error = Forbidden(
            f"{user} may not {verb} on {subject}; its permissions need {grant}", subject=subject, user=user
        )
        if verb == "subscribe":
            self.fail(error)
        elif not self.on_publish_denied(subject.lower(), error):
            _log.error("nats_permission_denied", user=user, subject=subject, reason=str(error))
