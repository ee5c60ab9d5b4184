"""Traces go through HTTP and NATS headers; off, the SDK is not imported."""

import subprocess
import sys

import httpx
import pytest
from fastapi import APIRouter
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from libs.common.bus.bus import Bus
from libs.common.bus.memory.transport import MemoryServer
from libs.common.clock import SystemClock
from libs.common.errors import WrongSetting
from libs.common.kit.http import http_door
from libs.common.kit.metrics import Metrics
from libs.common.kit.observer import KitObserver
from libs.common.kit.tracing import make_tracing
from libs.common.kit.tracing_opentelemetry import OpenTelemetry
from tests.unit.kit.doors import VERSION, opened
from tests.unit.kit.services import ECHO, Word

TRACE = "0af7651916cd43dd8448eb211c80319c"


async def test_a_trace_goes_from_http_through_nats_to_the_one_who_answers() -> None:
    spans = InMemorySpanExporter()
    tracing = OpenTelemetry("test", None, SimpleSpanProcessor(spans))
    metrics = Metrics("test", SystemClock(), version="1", python="3")
    router = APIRouter()

    async def echo(word: Word) -> Word:
        return word

    async with MemoryServer(clock=SystemClock()).connect("both") as transport:
        bus = Bus(transport, name="both", observer=KitObserver(metrics, tracing), clock=SystemClock())
        await bus.serve(ECHO, echo)

        @router.get("/ask")
        async def ask() -> Word:
            return await bus.request(ECHO, Word(text="hello"))

        door = http_door(router, version=VERSION, checks={}, metrics=metrics, clock=SystemClock(), tracing=tracing)
        async with opened(door) as client:
            answer = await client.get("/ask", headers={"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"})
    assert answer.status_code == httpx.codes.OK
    tracing.close()
    by_name = {span.name: span for span in spans.get_finished_spans()}
    assert set(by_name) == {"http GET", "serve test.echo.v1"}
    assert {format(span.context.trace_id, "032x") for span in by_name.values() if span.context} == {TRACE}
    serving, asked = by_name["serve test.echo.v1"], by_name["http GET"]
    assert serving.parent is not None
    assert asked.context is not None
    assert serving.parent.span_id == asked.context.span_id


def test_off_the_sdk_is_not_imported() -> None:
    script = (
        "import sys, libs.common.kit.runner as r, libs.common.kit.tracing as t\n"
        "t.make_tracing('x', on=False, endpoint=None)\n"
        "sys.exit('opentelemetry.sdk' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_a_missing_package_is_told_as_a_wrong_setting() -> None:
    with pytest.raises(WrongSetting, match="OTEL_EXPORTER_OTLP_ENDPOINT is set, but the package"):
        make_tracing("test", on=True, endpoint="http://127.0.0.1:4318/v1/traces")
