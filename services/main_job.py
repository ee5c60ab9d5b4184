"""The main job as a self-check: real inference through the whole mesh, by REST and by NATS.

It stands outside the services and uses only their doors. What it prints is what it measured; the tokens are compared
with the engine's own counters.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import uuid4

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from libs.common.bus.bus import Bus
from libs.common.clock import Clock
from libs.common.contracts.node_registry import Engine, EngineState
from libs.common.contracts.work_marshaling import SUBMIT, WorkItem
from libs.common.errors import Unavailable

T = TypeVar("T")

ITEMS_PER_DOOR = 20
MAX_TOKENS = 16
ENGINE_SECONDS = 120.0
RESULT_SECONDS = 120.0
_PREDICTED = "llamacpp:tokens_predicted_total"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """Where the doors of a running mesh are."""

    http: httpx.AsyncClient
    bus: Bus
    clock: Clock
    node_id: str
    urls: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What came of one item."""

    number: int
    door: str
    work_id: str
    status: str
    node: str = ""
    engine: str = ""
    tokens: int = 0
    seconds: float = 0.0
    problem: str = ""


@dataclass(slots=True)
class Report:
    engine: Engine
    rows: list[Row] = field(default_factory=list)
    tokens_by_engine: int = 0

    @property
    def tokens(self) -> int:
        return sum(row.tokens for row in self.rows)

    @property
    def good(self) -> bool:
        """Every item ended with one result, and the engine counted the same tokens."""
        everything = len(self.rows) == 2 * ITEMS_PER_DOOR and all(row.status == "completed" for row in self.rows)
        return everything and self.tokens == self.tokens_by_engine


async def main_job(mesh: Mesh, console: Console) -> Report:
    """Run 20 items by REST and 20 by NATS on this machine's engine and show what became of each.

    Raises `Unavailable` when this machine does not get as far as having an engine.
    """
    await _registered(mesh)
    engine = await _engine(mesh)
    console.print(_about(engine), highlight=False)
    await _earlier_items(mesh, console)
    before = await _counter(mesh, engine, _PREDICTED)
    report = Report(engine)
    with _progress(console) as progress:
        bar = progress.add_task("main job", total=2 * ITEMS_PER_DOOR)
        async for row in _run(mesh, engine):
            report.rows.append(row)
            progress.advance(bar)
    report.tokens_by_engine = await _counter(mesh, engine, _PREDICTED) - before
    console.print(_table(report))
    console.print(_verdict(report), highlight=False)
    return report


def _about(engine: Engine) -> str:
    test = " It is a test model with random weights: it answers nonsense." if engine.test_model else ""
    return (
        f"Engine {engine.engine_id} ({engine.kind}) serves {engine.model_name} on {engine.device}: "
        f"{engine.device_reason}.{test}"
    )


async def _registered(mesh: Mesh) -> None:
    async def ask() -> dict[str, Any] | None:
        answer = await mesh.http.get(f"{mesh.urls['node_registry']}/api/v1/nodes/{mesh.node_id}")
        return answer.json() if answer.status_code == httpx.codes.OK else None

    await _until(mesh, ask, ENGINE_SECONDS, "this machine is not listed by the registry")


async def _engine(mesh: Mesh) -> Engine:
    async def ask() -> Engine | None:
        answer = await _answered(mesh, "GET", f"{mesh.urls['node_agent']}/api/v1/engines")
        answer.raise_for_status()
        engines = [Engine.model_validate(engine) for engine in answer.json()["engines"]]
        return next((engine for engine in engines if engine.state is EngineState.READY), None)

    return await _until(mesh, ask, ENGINE_SECONDS, "no engine became ready; the agent's log says why")


async def _earlier_items(mesh: Mesh, console: Console) -> None:
    """Let work that an earlier run left open end first, or its tokens would be counted with ours."""

    async def open_items() -> int:
        answer = await _answered(mesh, "GET", f"{mesh.urls['work_marshaling']}/api/v1/stats")
        answer.raise_for_status()
        return int(answer.json()["open_items"])

    async def none_open() -> bool | None:
        return await open_items() == 0 or None

    count = await open_items()
    if count:
        console.print(f"{count} items from an earlier run are still open; they are finished first.", highlight=False)
        await _until(mesh, none_open, RESULT_SECONDS, "items from an earlier run do not end")


async def _run(mesh: Mesh, engine: Engine) -> AsyncIterator[Row]:
    doors: Sequence[Callable[[int], Awaitable[Row]]] = (
        lambda number: _by_rest(mesh, engine, number),
        lambda number: _by_nats(mesh, engine, number),
    )
    tasks = [asyncio.ensure_future(door(number)) for number in range(ITEMS_PER_DOOR) for door in doors]
    try:
        for next_row in asyncio.as_completed(tasks):
            yield await next_row
    finally:
        for task in tasks:
            task.cancel()


def _item(engine: Engine, number: int) -> WorkItem:
    return WorkItem(
        work_type="inference",
        model_name=engine.model_name,
        payload={"prompt": f"Node {number} says:", "max_tokens": MAX_TOKENS, "seed": number},
        submitter="main-job",
    )


async def _by_rest(mesh: Mesh, engine: Engine, number: int) -> Row:
    started = mesh.clock.monotonic()
    # Under an id of its own: asked again, it is the same item.
    item = _item(engine, number).model_copy(update={"work_id": f"main-job-{uuid4().hex}"})
    url = f"{mesh.urls['work_marshaling']}/api/v1/work/submit"
    answer = await _answered(mesh, "POST", url, json=item.model_dump(mode="json", exclude_none=True))
    if answer.status_code != httpx.codes.ACCEPTED:
        return Row(number=number, door="REST", work_id="", status="refused", problem=answer.text)
    view, seconds = await _ended(mesh, answer.json()["work_id"], started)
    return _row(number, "REST", view, seconds)


async def _by_nats(mesh: Mesh, engine: Engine, number: int) -> Row:
    started = mesh.clock.monotonic()
    receipt = await mesh.bus.append(SUBMIT, _item(engine, number), message_id=None)

    async def ask() -> str | None:
        url = f"{mesh.urls['work_marshaling']}/api/v1/work/by-sequence/{receipt.sequence}"
        answer = await mesh.http.get(url)
        return str(answer.json()["work_id"]) if answer.status_code == httpx.codes.OK else None

    work_id = await _until(mesh, ask, RESULT_SECONDS, f"the item with sequence {receipt.sequence} is not known")
    view, seconds = await _ended(mesh, work_id, started)
    return _row(number, "NATS", view, seconds)


async def _ended(mesh: Mesh, work_id: str, started: float) -> tuple[Mapping[str, Any], float]:
    """The item once it has ended, and the seconds since `started` until then."""
    url = f"{mesh.urls['work_marshaling']}/api/v1/work/{work_id}"

    async def ask() -> dict[str, Any] | None:
        answer = await mesh.http.get(f"{url}/result", params={"wait_seconds": 30}, timeout=45)
        return answer.json() if answer.status_code == httpx.codes.OK else None

    await _until(mesh, ask, RESULT_SECONDS, f"item {work_id} has no result")
    seconds = mesh.clock.monotonic() - started
    return (await _answered(mesh, "GET", url)).json(), seconds


def _row(number: int, door: str, view: Mapping[str, Any], seconds: float) -> Row:
    result = view.get("result") or {}
    return Row(
        number=number,
        door=door,
        work_id=view["work_id"],
        status=view["status"],
        node=view["attempts"][-1]["node_id"] if view.get("attempts") else "",
        engine=result.get("engine_id", ""),
        tokens=int(result.get("usage", {}).get("completion_tokens", 0)),
        seconds=seconds,
        problem=(view.get("error") or {}).get("message", ""),
    )


async def _counter(mesh: Mesh, engine: Engine, name: str) -> int:
    answer = await mesh.http.get(f"{engine.url}/metrics")
    answer.raise_for_status()
    value = next(line.split()[-1] for line in answer.text.splitlines() if line.startswith(name + " "))
    return int(float(value))


async def _answered(mesh: Mesh, method: str, url: str, **more: Any) -> httpx.Response:
    """What is asked of a service that may not be able to answer yet: after a kill nobody leads until the lease of who
    was killed has ended. Raises `Unavailable`."""

    async def ask() -> httpx.Response | None:
        answer = await mesh.http.request(method, url, **more)
        if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
            return answer
        await mesh.clock.sleep(float(answer.headers.get("Retry-After", "0")))
        return None

    return await _until(mesh, ask, RESULT_SECONDS, f"{url} is not available")


async def _until(mesh: Mesh, ask: Callable[[], Awaitable[T | None]], seconds: float, otherwise: str) -> T:
    """Ask again until there is an answer. Raises `Unavailable` with `otherwise` after so many seconds."""
    deadline = mesh.clock.monotonic() + seconds
    while mesh.clock.monotonic() < deadline:
        try:
            found = await ask()
        except httpx.TransportError:
            found = None
        if found is not None:
            return found
        await mesh.clock.sleep(0.05)
    raise Unavailable(f"After {seconds:.0f} s {otherwise}.")


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console)


def _table(report: Report) -> Table:
    table = Table("item", "by", "status", "node", "engine", title="Main job")
    table.add_column("tokens", justify="right")
    table.add_column("latency", justify="right")
    for row in sorted(report.rows, key=lambda row: (row.door, row.number)):
        status = row.status if not row.problem else f"{row.status}: {row.problem}"
        latency = f"{row.seconds * 1000:.0f} ms"
        table.add_row(row.work_id, row.door, status, row.node, row.engine, str(row.tokens), latency)
    return table


def _verdict(report: Report) -> str:
    done = sum(row.status == "completed" for row in report.rows)
    compared = "as" if report.tokens == report.tokens_by_engine else "BUT"
    return (
        f"{done} of {2 * ITEMS_PER_DOOR} items completed, {report.tokens} tokens, "
        f"{compared} the engine counted {report.tokens_by_engine}; device: {report.engine.device}."
    )
