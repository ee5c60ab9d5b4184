"""Routes of this process, asked from within: as over HTTP, but without a socket and without its guards."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from libs.common.errors import TooLarge
from libs.common.kit.problems import install

ENDLESS = "text/event-stream"
Answer = Callable[[Request], Coroutine[Any, Any, Response]]
Elsewhere = Callable[[Request], Awaitable[Response | None]]


def answered_elsewhere(elsewhere: Elsewhere) -> type[APIRoute]:
    """A class of routes, for an `APIRouter`: each asks `elsewhere` first, and answers itself when that has none."""

    class Route(APIRoute):
        def get_route_handler(self) -> Answer:
            answer = super().get_route_handler()

            async def first_elsewhere(request: Request) -> Response:
                return await elsewhere(request) or await answer(request)

            return first_elsewhere

    return Route


@dataclass(slots=True)
class Told:
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class Within:
    """`ask` may be called as soon as there is a router."""

    def __init__(self, router: APIRouter) -> None:
        self._app = FastAPI(openapi_url=None, telemetry={"tracing": False, "metrics": False, "logs": False})
        self._app.include_router(router)
        install(self._app)

    async def ask(self, method: str, path: str, query: str, body: str) -> Told:
        """Raises `TooLarge` for an answer without an end."""
        told = Told()
        sent, endless = asyncio.Event(), asyncio.Event()

        async def receive() -> dict[str, Any]:
            if sent.is_set():
                await asyncio.Event().wait()  # nobody leaves before the answer
            sent.set()
            return {"type": "http.request", "body": body.encode(), "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                told.status = message["status"]
                told.headers = {name.decode(): value.decode() for name, value in message["headers"]}
                if told.headers.get("content-type", "").startswith(ENDLESS):
                    endless.set()
            else:
                told.body += message.get("body", b"")

        answering = self._app(_scope(method, path, query), receive, send)  # type: ignore[arg-type]  # ASGI's shapes
        tasks = [asyncio.ensure_future(answering), asyncio.create_task(endless.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if endless.is_set():
                raise TooLarge("an answer without an end")
            await tasks[0]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return told


def _scope(method: str, path: str, query: str) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(b"content-type", b"application/json"), (b"host", b"within")],
        "client": None,
        "server": ("within", 80),
    }
