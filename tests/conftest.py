"""What every test may ask for, and the rule about skipping."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.nats_process import NatsProcess, nats_process

# How long an example takes says something about the machine, not about the code.
settings.register_profile("mesh", deadline=None, print_blob=True)
settings.load_profile("mesh")


@pytest.fixture
def nats() -> Iterator[NatsProcess]:
    """A nats-server of this test's own."""
    with nats_process() as server:
        yield server


@pytest.fixture(scope="session")
def shared_nats() -> Iterator[NatsProcess]:
    """One nats-server for tests that neither stop it nor mind what others left in it."""
    with nats_process() as server:
        yield server


_skipped: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and "gpu" not in report.keywords:
        _skipped.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI a test that does not run is a failure, unless it needs a GPU."""
    if os.environ.get("CI") and _skipped and session.exitstatus == pytest.ExitCode.OK:
        print("\nSkipped in CI without being marked `gpu`:", *_skipped, sep="\n  ")  # noqa: T201
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
