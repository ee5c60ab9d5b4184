"""Metrics: our own names, labels that nobody outside can invent."""

import asyncio
from contextlib import suppress

import pytest

from libs.common.bus.bus import Bus
from libs.common.bus.memory.transport import MemoryServer
from libs.common.clock import ManualClock, SystemClock
from libs.common.errors import Conflict, error_named
from libs.common.kit.metrics import Metrics
from libs.common.kit.observer import KitObserver
from libs.common.kit.tracing import NoTracing
from tests.unit.kit.services import ECHO, Word


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("test", ManualClock(), version="1.2.3", python="3.11.0")


def test_every_name_begins_with_the_prefix(metrics: Metrics) -> None:
    assert all(family.name.startswith("mesh_") for family in metrics.registry.collect())


def test_the_build_is_told(metrics: Metrics) -> None:
    assert 'mesh_build_info{python="3.11.0",service="test",version="1.2.3"} 1.0' in metrics.page().decode()


def test_two_services_count_apart(metrics: Metrics) -> None:
    other = Metrics("other", ManualClock(), version="1", python="3")
    other.malformed("test.echo.v1")
    assert "test.echo.v1" not in metrics.page().decode()


def test_handling_is_counted_by_how_it_ended(metrics: Metrics) -> None:
    for error in (None, Conflict("no"), ZeroDivisionError(), asyncio.CancelledError()):
        with suppress(BaseException), metrics.handling("serve", "test.echo.v1"):
            if error is not None:
                raise error
    page = metrics.page().decode()
    for outcome in ("ok", "conflict", "internal", "cancelled"):
        assert f'mesh_bus_handled_total{{kind="serve",outcome="{outcome}",subject="test.echo.v1"}} 1.0' in page


def test_a_code_that_a_stranger_answered_never_becomes_a_label(metrics: Metrics) -> None:
    metrics.sent("request", "test.echo.v1", error_named("made_up_by_a_stranger", "…", {}).code)
    page = metrics.page().decode()
    assert "made_up" not in page
    assert 'outcome="other"' in page


async def test_the_bus_tells_its_observer_under_declared_subjects_only() -> None:
    metrics = Metrics("test", SystemClock(), version="1", python="3")

    async def echo(word: Word) -> Word:
        return word

    async with MemoryServer(clock=SystemClock()).connect("both") as transport:
        bus = Bus(transport, name="both", observer=KitObserver(metrics, NoTracing()), clock=SystemClock())
        await bus.serve(ECHO, echo)
        assert (await bus.request(ECHO, Word(text="hello"))).text == "hello"
        await transport.request(ECHO.subject, b"{", {}, timeout=5)
    page = metrics.page().decode()
    assert 'mesh_bus_handled_total{kind="serve",outcome="ok",subject="test.echo.v1"} 1.0' in page
    assert 'mesh_bus_handled_total{kind="serve",outcome="malformed",subject="test.echo.v1"} 1.0' in page
    assert 'mesh_bus_malformed_total{subject="test.echo.v1"} 1.0' in page
    assert 'mesh_bus_sent_total{kind="request",outcome="ok",subject="test.echo.v1"} 1.0' in page
