"""Two registries as processes of their own, with one archive; the elected one is killed."""

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.mesh_process import MeshProcess, mesh_process
from tests.nats_process import NatsProcess

PROGRAM = ("-m", "services.node_registry")
TAKEN_OVER_SECONDS = 5.0


@pytest.fixture
def registries(tmp_path: Path, nats: NatsProcess) -> Iterator[tuple[MeshProcess, MeshProcess]]:
    settings = {"NATS_URL": nats.url, "ARCHIVE_URL": f"sqlite:///{tmp_path}/archive.db"}
    with mesh_process(tmp_path / "one", **settings) as one, mesh_process(tmp_path / "two", **settings) as two:
        for each in (one.start(PROGRAM), two.start(PROGRAM)):
            each.wait_ready(["node_registry"])
        yield one, two


def ask(registry: MeshProcess, path: str) -> Any:
    return httpx.get(f"{registry.url('node_registry')}{path}", timeout=10).raise_for_status().json()


def tell(registry: MeshProcess, path: str, body: object = None) -> Any:
    answer = httpx.post(f"{registry.url('node_registry')}/api/v1{path}", json=body, timeout=10)
    return answer.raise_for_status().json()


def until(truth: Callable[[], bool], *, timeout: float = 20.0) -> float:
    """How long it took."""
    began = time.monotonic()
    while not truth():
        assert time.monotonic() - began < timeout, "it did not come to that"
        time.sleep(0.05)
    return time.monotonic() - began


def elected(*registries: MeshProcess) -> list[MeshProcess]:
    return [each for each in registries if ask(each, "/api/v1/stats")["publishing"]]


def history(registry: MeshProcess, node_id: str) -> list[tuple[str, str, str]]:
    answer = httpx.get(f"{registry.url('node_registry')}/api/v1/nodes/{node_id}/history", timeout=10)
    if answer.status_code == httpx.codes.NOT_FOUND:
        return []
    return [(each["event_id"], each["kind"], each["state"]) for each in answer.raise_for_status().json()["events"]]


def beliefs(registry: MeshProcess) -> list[tuple[str, str, bool, str]]:
    nodes = ask(registry, "/api/v1/nodes")["nodes"]
    return [(each["node_id"], each["state"], each["draining"], each["draining_reason"]) for each in nodes]


def test_the_other_one_goes_on_within_seconds_when_the_elected_one_is_killed(
    registries: tuple[MeshProcess, MeshProcess],
):
    one, two = registries
    until(lambda: len(elected(one, two)) == 1)
    (first,) = elected(one, two)
    other = two if first is one else one
    tell(other, "/nodes/register", {"node_id": "a"})
    tell(first, "/nodes/register", {"node_id": "b"})
    tell(other, "/nodes/a/drain", {"reason": "new fan"})
    until(lambda: beliefs(one) == beliefs(two) and len(beliefs(one)) == 2 and beliefs(one)[0][2])
    until(lambda: len(history(other, "a")) == 2 and len(history(other, "b")) == 1)

    first.kill()
    tell(other, "/nodes/register", {"node_id": "c"})
    tell(other, "/nodes/a/undrain")
    took = until(lambda: elected(other) == [other])
    until(lambda: len(history(other, "c")) == 1 and len(history(other, "a")) == 3)
    first.start(PROGRAM).wait_ready(["node_registry"])
    until(lambda: beliefs(one) == beliefs(two) and len(beliefs(one)) == 3)

    assert took <= TAKEN_OVER_SECONDS
    assert elected(one, two) == [other]
    assert [kind for _, kind, _ in history(first, "a")] == ["drain", "drain", "state"]
    assert [kind for _, kind, _ in history(first, "b")] == ["state"]


def test_an_orderly_end_hands_over_at_once(registries: tuple[MeshProcess, MeshProcess]):
    one, two = registries
    until(lambda: len(elected(one, two)) == 1)
    (first,) = elected(one, two)
    other = two if first is one else one
    assert first.stop() == 0

    assert until(lambda: elected(other) == [other]) < 2.0


def test_a_registry_works_on_without_its_archive_and_catches_up(tmp_path: Path, nats: NatsProcess):
    """The file is locked by another program, and then it is not."""
    file = tmp_path / "archive.db"
    with mesh_process(tmp_path / "one", NATS_URL=nats.url, ARCHIVE_URL=f"sqlite:///{file}") as registry:
        registry.start(PROGRAM).wait_ready(["node_registry"])
        until(lambda: bool(elected(registry)))
        tell(registry, "/nodes/register", {"node_id": "a"})
        until(lambda: len(history(registry, "a")) == 1)
        locked = sqlite3.connect(file, isolation_level=None)
        locked.execute("begin exclusive")
        tell(registry, "/nodes/register", {"node_id": "b"})
        tell(registry, "/nodes/b/drain", {"reason": "while it is away"})

        until(lambda: _archive(registry).startswith("degraded: "), timeout=40)
        assert ask(registry, "/readyz")["ready"]
        assert [each[0] for each in beliefs(registry)] == ["a", "b"]
        locked.execute("rollback")
        locked.close()
        until(lambda: len(history(registry, "b")) == 2, timeout=40)
        until(lambda: _archive(registry) == "ok", timeout=40)


def _archive(registry: MeshProcess) -> str:
    return str(json.loads(httpx.get(f"{registry.url('node_registry')}/readyz", timeout=10).text)["checks"]["archive"])
