"""A real HTTP door around some routes, for the tests of the kit."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import httpx
from fastapi import APIRouter

from libs.common.clock import SystemClock
from libs.common.kit.http import Door, Version, http_door
from libs.common.kit.http_server import bind, serving
from libs.common.kit.metrics import Metrics
from libs.common.kit.service import Check

VERSION = Version(service="test_service", version="1.2.3", python="3.11.0", node_id="node-1", boot_id="boot-1")


def door(
    router: APIRouter, *, checks: Mapping[str, Check] | None = None, token: str | None = None, body_limit_mb: int = 1
) -> Door:
    metrics = Metrics("test_service", SystemClock(), version="1.2.3", python="3.11.0")
    return http_door(
        router,
        version=VERSION,
        checks=checks or {},
        metrics=metrics,
        clock=SystemClock(),
        token=token,
        body_limit_mb=body_limit_mb,
    )


@asynccontextmanager
async def opened(made: Door, *, drain_seconds: float = 2.0) -> AsyncIterator[httpx.AsyncClient]:
    listener = bind("127.0.0.1", 0, variable="TEST_SERVICE_PORT")
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with (
        httpx.AsyncClient(base_url=url, timeout=10) as client,
        serving(made.app, listener, drain_seconds=drain_seconds, closing=made.streams.end),
    ):
        yield client
