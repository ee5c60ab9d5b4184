"""The only place where the benchmark runner's parts meet."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from uuid import uuid4

import httpx

from libs.common.clock import Clock
from libs.common.kit.service import Platform, Service
from libs.common.kit.settings import load
from services.benchmark_runner.http_api import routes
from services.benchmark_runner.load_http import HttpLoad
from services.benchmark_runner.nats_api import open_doors
from services.benchmark_runner.settings import Settings
from services.benchmark_runner.store_files import FileReports
from services.benchmark_runner.use_cases import BenchmarkRunner


def build(platform: Platform, settings: Settings | None = None) -> Service:
    """Raises `WrongSetting`."""
    chosen = settings or load(Settings)
    reports = FileReports(chosen.benchmark_output_dir or platform.data_dir / "benchmarks")
    # The connection pool must never be what is measured.
    key = chosen.engine_api_key.get_secret_value() if chosen.engine_api_key else ""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=2.0)
    client = httpx.AsyncClient(limits=limits, trust_env=False)
    runner = BenchmarkRunner(
        clock=platform.clock,
        load=HttpLoad(client, platform.clock, key),
        reports=reports,
        make_id=partial(_make_id, platform.clock),
        queue_limit=chosen.benchmark_queue,
    )

    @asynccontextmanager
    async def open_and_close() -> AsyncIterator[None]:
        await runner.recall()
        try:
            yield
        finally:
            await client.aclose()
            reports.close()

    return Service(
        port=chosen.port,
        lifespan=open_and_close,
        subscriptions=partial(open_doors, platform.bus, runner),
        loops=[runner.work],
        router=routes(runner),
    )


def _make_id(clock: Clock) -> str:
    """Sorts by time, and is nobody else's."""
    return f"{clock.now():%Y%m%dT%H%M%S}-{uuid4().hex[:8]}"
