"""An agent as the kit would run it, on a bus in memory, and who speaks with it."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, generate_latest

from libs.common.bus.bus import Bus, Stored
from libs.common.bus.memory.transport import MemoryServer
from libs.common.bus.observer import SilentObserver
from libs.common.clock import SystemClock
from libs.common.contracts.base import Call, Message
from libs.common.contracts.node_registry import WORKLOAD, NodeWorkload
from libs.common.contracts.streams import WORK_OBJECTS, WORK_OUT, Stream
from libs.common.contracts.work_marshaling import (
    ASSIGN,
    COMPLETED,
    FAILED,
    PROGRESS,
    STOP,
    Assignment,
    AssignmentAnswer,
    Assignments,
    AttemptsStopped,
    StopAttempts,
    WorkCompleted,
    WorkFailed,
    WorkProgress,
)
from libs.common.contracts.work_outcomes import OUTCOMES
from libs.common.kit.problems import install
from libs.common.kit.service import Platform, Service
from libs.common.kit.settings import load
from services.node_agent.attempts import Pool
from services.node_agent.claiming import Claiming
from services.node_agent.draining import Draining
from services.node_agent.job_memory import MemoryOfJobs
from services.node_agent.large import Large
from services.node_agent.observer_prometheus import PrometheusObserver
from services.node_agent.outbox import Outbox
from services.node_agent.reports import Reports
from services.node_agent.runner_function import FunctionRunner
from services.node_agent.settings import Settings
from services.node_agent.store_sqlite import SqliteJournal
from services.node_agent.use_cases import NodeAgent
from services.node_agent.wiring import build
from tests.integration.node_agent.conftest import until
from tests.integration.node_agent.functions import append_line, echo, wait_at

Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)

NODE = "node-1"
PLACE = "tests.integration.node_agent.functions"
FUNCTIONS = ",".join(
    f"{name}={PLACE}:{name}" for name in ("echo", "append_line", "wait_at", "fail", "huge", "not_json")
)
FUNCTIONS_BY_NAME = {"echo": echo, "append_line": append_line, "wait_at": wait_at}
_numbers = itertools.count(1)


def function_job(name: str, arguments: Any = None, **changes: Any) -> Assignment:
    return job("function", {"function": name, "arguments": arguments}, **changes)


def job(work_type: str, payload: dict[str, Any], **changes: Any) -> Assignment:
    number = next(_numbers)
    return Assignment.model_validate(
        {
            "work_id": f"work-{number}",
            "attempt": 1,
            "attempt_token": f"token-{number}",
            "node_id": NODE,
            "work_type": work_type,
            "timeout_seconds": 20,
            "lease_seconds": 3,
            "payload": payload,
        }
        | changes
    )


def outcomes_in(bus: Bus, stored: Stored) -> Sequence[WorkCompleted | WorkFailed]:
    """What a message of WORK_OUT tells."""
    if stored.subject == OUTCOMES.subject:
        return bus.decode(OUTCOMES, stored).completed
    return (bus.decode(COMPLETED if stored.subject == COMPLETED.subject else FAILED, stored),)  # type: ignore[arg-type]


@dataclass
class Marshaling:
    """The other side: assigns, stops, hears."""

    bus: Bus
    server: MemoryServer
    progress: list[WorkProgress] = field(default_factory=list)
    workloads: list[NodeWorkload] = field(default_factory=list)
    outcomes: list[WorkCompleted | WorkFailed] = field(default_factory=list)

    async def listen(self) -> None:
        async def heard_progress(message: WorkProgress) -> None:
            self.progress.append(message)

        async def heard_workload(message: NodeWorkload) -> None:
            self.workloads.append(message)

        await self.bus.subscribe(PROGRESS, heard_progress)
        await self.bus.subscribe(WORKLOAD, heard_workload)

    async def read_outcomes(self) -> None:
        async for batch in self.bus.read(WORK_OUT, after=0):
            for stored in batch:
                self.outcomes.extend(outcomes_in(self.bus, stored))

    async def request(self, call: Call[Q, A], asked: Q) -> A:
        return await self.bus.request(call, asked, node_id=NODE, timeout=5)

    async def assign(self, *assignments: Assignment, again: bool = False) -> list[AssignmentAnswer]:
        answer = await self.request(ASSIGN, Assignments(epoch=1, assignments=assignments, again=again))
        return list(answer.answers)

    async def stop(self, *tokens: str) -> AttemptsStopped:
        return await self.request(STOP, StopAttempts(attempt_tokens=tokens, reason="test"))

    async def outcome_of(self, assignment: Assignment) -> WorkCompleted | WorkFailed:
        def found() -> list[WorkCompleted | WorkFailed]:
            return [each for each in self.outcomes if each.attempt_token == assignment.attempt_token]

        await until(found)
        return found()[0]


@dataclass
class AgentAtWork:
    service: Service
    registry: CollectorRegistry
    stack: AsyncExitStack

    async def end(self) -> None:
        await self.stack.aclose()

    async def get(self, path: str) -> httpx.Response:
        return await self.ask("GET", path)

    async def shown_once(self, path: str, holds: Callable[[Any], bool], *, seconds: float = 20.0) -> Any:
        """What the route shows as soon as the condition holds; fails after `seconds`."""
        async with asyncio.timeout(seconds):
            while not holds(shown := (await self.get(path)).json()):
                await asyncio.sleep(0.01)
        return shown

    async def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        app = FastAPI()
        install(app)
        app.include_router(self.service.router)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://agent") as client:
            return await client.request(method, path, **more)

    def metrics(self) -> str:
        return generate_latest(self.registry).decode()


@asynccontextmanager
async def marshaling(stream: Stream = WORK_OUT) -> AsyncIterator[Marshaling]:
    clock = SystemClock()
    server = MemoryServer(clock=clock)
    async with server.connect("marshaling") as transport:
        await transport.ensure_stream(stream)
        await transport.ensure_stream(WORK_OBJECTS.stream)
        bus = Bus(transport, name="marshaling", observer=SilentObserver(), clock=clock)
        other = Marshaling(bus, server)
        await other.listen()
        reading = asyncio.create_task(other.read_outcomes())
        try:
            yield other
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


async def start_agent(server: MemoryServer, folder: Path, environment: Mapping[str, str] | None = None) -> AgentAtWork:
    """Everything the kit does for the agent, but the ports."""
    stack, clock, registry = AsyncExitStack(), SystemClock(), CollectorRegistry()
    transport = await stack.enter_async_context(server.connect("agent"))
    bus = Bus(transport, name="agent", observer=SilentObserver(), clock=clock)
    platform = Platform(
        bus=bus, clock=clock, metrics=registry, node_id=NODE, boot_id=f"boot-{next(_numbers)}", data_dir=folder
    )
    settings = load(Settings, {"ENGINE": "none", "AGENT_FUNCTIONS": FUNCTIONS, **(environment or {})})
    service = build(platform, settings)
    await stack.enter_async_context(service.lifespan())
    await service.subscriptions()
    return AgentAtWork(service, registry, stack)


@asynccontextmanager
async def agent(
    server: MemoryServer, folder: Path, environment: Mapping[str, str] | None = None
) -> AsyncIterator[AgentAtWork]:
    at_work = await start_agent(server, folder, environment)
    try:
        yield at_work
    finally:
        await at_work.end()


@asynccontextmanager
async def bare_agent(folder: Path, *, slots: int, journal: SqliteJournal | None = None) -> AsyncIterator[NodeAgent]:
    """The use cases without doors and loops: nothing is told or delivered."""
    clock = SystemClock()
    journal = journal or SqliteJournal(folder / "journal.db")
    observer = PrometheusObserver(CollectorRegistry())
    async with MemoryServer(clock=clock).connect("bare") as transport:
        bus = Bus(transport, name="bare", observer=SilentObserver(), clock=clock)
        reports = Reports(bus, clock, node_id=NODE, boot_id="boot")
        draining = Draining(bus, journal, clock, reports, node_id=NODE)
        functions = FunctionRunner(FUNCTIONS_BY_NAME, slots=slots, freed=reports.workload_changed)
        await journal.open()
        try:
            yield NodeAgent(
                boot_id="boot",
                clock=clock,
                journal=journal,
                outbox=Outbox(bus, journal, clock, observer),
                reports=reports,
                large=Large(bus),
                memory=MemoryOfJobs(Claiming(bus, node_id=NODE), Large(bus), clock),
                draining=draining,
                observer=observer,
                pools=[Pool(functions)],
                engines=[],
            )
        finally:
            await functions.close()
            await journal.close()
