"""The main job as a self-check: real inference through the whole mesh, by REST and by NATS.

It stands outside the services and uses only their doors. What it prints is what it measured; the tokens are compared
with the engine's own counters, where it has some.
"""

import asyncio
import re
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
ENGINE_SECONDS = 600.0
FAILED_SECONDS = 5.0
RESULT_SECONDS = 120.0
QUIET_SECONDS = 3.0
_PREDICTED = re.compile(
    r"^(?:llamacpp:tokens_predicted|vllm:generation_tokens)_total(?:\{[^}]*\})? (\S+)", re.MULTILINE
)


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
    """`tokens_by_engine`: None where it does not tell. `alone`: nobody else's work was open at the time."""

    engine: Engine
    rows: list[Row] = field(default_factory=list)
    tokens_by_engine: int | None = None
    alone: bool = True

    @property
    def tokens(self) -> int:
        return sum(row.tokens for row in self.rows)

    @property
    def counted_right(self) -> bool:
        """The engine counted the same tokens, or more where it had others' work too."""
        if self.tokens_by_engine is None:
            return True
        return self.tokens == self.tokens_by_engine or (not self.alone and self.tokens < self.tokens_by_engine)

    @property
    def good(self) -> bool:
        """Every item ended with one result, and the engine agrees."""
        everything = len(self.rows) == 2 * ITEMS_PER_DOOR and all(row.status == "completed" for row in self.rows)
        return everything and self.counted_right


async def main_job(mesh: Mesh, console: Console) -> Report | None:
    """Run 20 items by REST and 20 by NATS on this machine's engine and show what became of each. None: it has none.

    Raises `Unavailable` when this machine does not get as far as having its engine.
    """
    await _registered(mesh)
    engine = await _engine(mesh)
    if engine is None:
        console.print("This machine runs no engine, so the main job is left out.")
        return None
    console.print(_about(engine), highlight=False)
    await _earlier_items(mesh, console)
    report = Report(engine, alone=await _open_items(mesh) == 0)
    before = await _counter(mesh, engine)
    with _progress(console) as progress:
        bar = progress.add_task("main job", total=2 * ITEMS_PER_DOOR)
        async for row in _run(mesh, engine):
            report.rows.append(row)
            progress.advance(bar)
    after = await _counter(mesh, engine)
    report.tokens_by_engine = None if before is None or after is None else after - before
    report.alone = report.alone and await _open_items(mesh) == 0
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


async def _engine(mesh: Mesh) -> Engine | None:
    """Once it is ready. None where the agent is to run none. Raises `Unavailable` when none comes up."""
    clock = mesh.clock
    alive = clock.monotonic()

    async def ask() -> list[Engine] | None:
        nonlocal alive
        answer = await _answered(mesh, "GET", f"{mesh.urls['node_agent']}/api/v1/engines")
        answer.raise_for_status()
        engines = [Engine.model_validate(engine) for engine in answer.json()["engines"]]
        if any(engine.state is not EngineState.FAILED for engine in engines):
            alive = clock.monotonic()
        elif engines and clock.monotonic() - alive > FAILED_SECONDS:
            raise Unavailable("; ".join(f"{engine.engine_id}: {engine.problem}" for engine in engines))
        ready = [engine for engine in engines if engine.state is EngineState.READY]
        return ready if ready or not engines else None

    ready = await _until(mesh, ask, ENGINE_SECONDS, "no engine became ready; the agent's log says why")
    return next(iter(ready), None)


async def _open_items(mesh: Mesh) -> int:
    return int((await _stats(mesh))["open_items"])


async def _stats(mesh: Mesh) -> Mapping[str, Any]:
    answer = await _answered(mesh, "GET", f"{mesh.urls['work_marshaling']}/api/v1/stats")
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


async def _earlier_items(mesh: Mesh, console: Console) -> None:
    """Let work that an earlier run left open end first, or its tokens are counted with ours.

    What waits for something that this mesh does not have is not waited for, nor what takes too long.
    """
    count = await _open_items(mesh)
    if count == 0:
        return
    console.print(f"{count} items from an earlier run are still open; they are finished first.", highlight=False)
    clock, began = mesh.clock, mesh.clock.monotonic()
    seen, since = count, began
    while seen and clock.monotonic() - began < RESULT_SECONDS:
        stats = await _stats(mesh)
        busy = stats["by_status"].get("assigned", 0) + stats["by_status"].get("running", 0)
        if busy or stats["open_items"] != seen:
            seen, since = stats["open_items"], clock.monotonic()
        elif clock.monotonic() - since > QUIET_SECONDS:
            break
        await clock.sleep(0.05)
    if seen:
        console.print(f"{seen} of them stay open: GET /api/v1/work/{{work_id}}/explain says why.", highlight=False)


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


async def _counter(mesh: Mesh, engine: Engine) -> int | None:
    """The tokens that the engine generated so far. None where it does not say: not every engine has metrics."""
    try:
        answer = await mesh.http.get(f"{engine.url}/metrics")
    except httpx.TransportError:
        return None
    values = _PREDICTED.findall(answer.text) if answer.is_success else []
    return int(sum(map(float, values))) if values else None


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
    return (
        f"{done} of {2 * ITEMS_PER_DOOR} items completed, {report.tokens} tokens, {_compared(report)}; "
        f"device: {report.engine.device}."
    )


def _compared(report: Report) -> str:
    counted = report.tokens_by_engine
    if counted is None:
        return "which the engine does not count"
    if counted == report.tokens:
        return f"as the engine counted {counted}"
    return f"of {counted} that the engine counted" if report.counted_right else f"BUT the engine counted {counted}"
