"""What every test may ask for."""

from collections.abc import Iterator

import pytest

from tests.nats_process import NatsProcess, nats_process


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
