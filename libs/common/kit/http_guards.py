"""What every HTTP request passes on its way in: correlation, counting, the token, the size limit, the last net."""

import asyncio
import hmac
from collections.abc import Callable, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from libs.common.bus.observer import CORRELATION_HEADER, Correlated
from libs.common.clock import Clock
from libs.common.errors import Internal, MeshError, TooLarge, Unauthorized
from libs.common.kit.metrics import Metrics
from libs.common.kit.problems import problem_response
from libs.common.kit.tracing import NoTracing, Tracing

log = structlog.get_logger()

MIB = 1024 * 1024
UNMATCHED = "unmatched"
_CORRELATION = CORRELATION_HEADER.lower().encode()


class Observed:
    """Joins a request to what follows from it, counts it, and traces it. Outermost."""

    def __init__(self, app: ASGIApp, *, service: str, metrics: Metrics, clock: Clock, tracing: Tracing) -> None:
        self._app = app
        self._service = service
        self._metrics = metrics
        self._clock = clock
        self._tracing = None if isinstance(tracing, NoTracing) else tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started, status = self._clock.monotonic(), 500
        with Correlated(_header(scope, _CORRELATION)) as correlation:

            async def sending(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                    message["headers"] = [*message.get("headers", ()), (_CORRELATION, correlation.encode())]
                await send(message)

            with structlog.contextvars.bound_contextvars(service=self._service), self._traced(scope):
                try:
                    await self._app(scope, receive, sending)
                finally:
                    self._tell(scope, status, self._clock.monotonic() - started)

    def _traced(self, scope: Scope) -> AbstractContextManager[None]:
        if self._tracing is None:
            return nullcontext()
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        return self._tracing.span("http", scope["method"], headers)

    def _tell(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", UNMATCHED)
        self._metrics.http(scope["method"], route, status, seconds)
        log.debug("http_request", method=scope["method"], route=route, status=status, seconds=round(seconds, 4))


class LastNet:
    """A bug is logged once, with its trace, and answered without detail."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except ClientDisconnect:
            log.debug("http_client_left", path=scope["path"])
        except Exception:
            log.exception("http_request_failed", method=scope["method"], path=scope["path"])
            if not started:
                await _answer(Internal("internal error"), scope, receive, send)


class TokenRequired:
    """Lets in who carries the token; `/healthz` is open, so that whoever supervises the process can ask it."""

    def __init__(self, app: ASGIApp, *, token: str) -> None:
        self._app = app
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/healthz" or self._fits(_header(scope, b"authorization") or ""):
            return await self._app(scope, receive, send)
        return await _answer(Unauthorized("This needs `Authorization: Bearer` with the token."), scope, receive, send)

    def _fits(self, authorization: str) -> bool:
        scheme, _, token = authorization.partition(" ")
        fits = hmac.compare_digest(token.strip().encode("latin-1"), self._token)
        return fits and scheme.lower() == "bearer"


OPEN_FROM_THE_START = frozenset({"/healthz", "/readyz", "/metrics", "/version", "/docs", "/openapi.json"})


class Started:
    """Declines what the service cannot answer yet, with what `starting` says; None: it can."""

    def __init__(self, app: ASGIApp, *, starting: Callable[[], MeshError | None]) -> None:
        self._app = app
        self._starting = starting

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        waits = None if scope["path"] in OPEN_FROM_THE_START else self._starting()
        if waits is None:
            return await self._app(scope, receive, send)
        return await _answer(waits, scope, receive, send)


class BodyLimit:
    """Refuses a body that is announced too large, and one that turns out to be, while it still streams in."""

    def __init__(self, app: ASGIApp, *, limit_bytes: int) -> None:
        self._app = app
        self._limit = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        announced = _header(scope, b"content-length") or "0"
        if announced.isascii() and announced.isdigit() and int(announced[:20]) > self._limit:
            return await _answer(self._refusal(value=int(announced[:20])), scope, receive, send)
        taken = 0

        async def receiving() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._limit:
                raise HTTPException(413, self._refusal().message)
            return message

        return await self._app(scope, receiving, send)

    def _refusal(self, **known: int) -> TooLarge:
        told = f"The body is larger than {self._limit / MIB:g} MiB; send less at once, or set HTTP_BODY_LIMIT_MB."
        return TooLarge(told, field="body", limit=self._limit, **known)


class OpenStreams:
    """Event streams that have no end of their own; ended when the door closes."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ending = False

    def end(self) -> None:
        """End every open stream, and those still to come as soon as they begin."""
        self._ending = True
        for task in self._tasks:
            task.cancel()

    async def pass_through(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None

        async def sending(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.start" and _is_event_stream(message):
                self._tasks.add(task)
                if self._ending:
                    task.cancel()

        try:
            await app(scope, receive, sending)
        except asyncio.CancelledError:
            if not (self._ending and task in self._tasks):
                raise
            task.uncancel()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._tasks.discard(task)


class StreamsEnd:
    """Puts every request under `OpenStreams`."""

    def __init__(self, app: ASGIApp, *, streams: OpenStreams) -> None:
        self._app = app
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._streams.pass_through(self._app, scope, receive, send)


def _header(scope: Scope, wanted: bytes) -> str | None:
    """The last of that name."""
    found: bytes | None = None
    for name, value in scope["headers"]:
        if name == wanted:
            found = value
    return None if found is None else found.decode("latin-1")


def _is_event_stream(message: MutableMapping[str, Any]) -> bool:
    return any(
        name.lower() == b"content-type" and value.startswith(b"text/event-stream")
        for name, value in message.get("headers", ())
    )


async def _answer(error: MeshError, scope: Scope, receive: Receive, send: Send) -> None:
    await problem_response(error, instance=scope["path"])(scope, receive, send)
