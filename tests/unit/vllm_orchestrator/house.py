"""A whole orchestrator in memory, and machines whose ledgers and agents do what the test says. Asked over NATS."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from libs.common.bus.bus import Bus
from libs.common.bus.memory.transport import MemoryServer
from libs.common.bus.observer import SilentObserver
from libs.common.clock import SystemClock
from libs.common.contracts.engine_hosting import (
    ENGINE_LOG,
    LOOK_AT_ENGINES,
    START_ENGINE,
    STOP_ENGINE,
    EngineKey,
    EngineLog,
    HostedEngine,
    HostedEngines,
    LookAtEngines,
    ReadEngineLog,
    StartEngine,
    StopEngine,
)
from libs.common.contracts.gpu_orchestrator import (
    RELEASE,
    RESERVE,
    Release,
    Reservation,
    ReservationState,
    ReserveRequest,
)
from libs.common.contracts.node_registry import (
    QUERY,
    EngineState,
    Gpu,
    GpuBeat,
    Inventory,
    Memory,
    NetworkAddress,
    NodeQuery,
    NodesFound,
    NodeState,
    NodeView,
    Tier,
)
from libs.common.contracts.node_registry import Platform as Kind
from libs.common.contracts.streams import VLLM_LOG
from libs.common.contracts.vllm_instances import InstanceEvent, InstanceView
from libs.common.contracts.vllm_requests import VLLM_REQUEST, VllmReply, VllmRequest
from libs.common.errors import Conflict, NotFound, Unavailable
from libs.common.kit.service import Platform
from libs.common.log.fenced_log import SteppedDown
from services.vllm_orchestrator.settings import Settings
from services.vllm_orchestrator.wiring import build
from tests.fake_engine import FAILURES
from tests.unit.inference.planner.published import config

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
LARGE = "meta-llama/Llama-3.1-70B-Instruct"
NOW = datetime(2030, 1, 1, tzinfo=UTC)
PATIENCE_SECONDS = 30.0


@dataclass
class Card:
    name: str
    total_mb: int
    capability: str


H100 = Card("NVIDIA H100 80GB HBM3", 81559, "9.0")
A100 = Card("NVIDIA A100-SXM4-80GB", 81920, "8.0")


@dataclass
class Machine:
    """`starts`: how the starts to come go, as `tests.fake_engine` names it. `gone`: its registry and nobody else
    knows of it any more."""

    node_id: str
    cards: list[Card]
    ram_mb: int = 500_000
    starts: list[str] = field(default_factory=list)
    gone: bool = False
    refuses: bool = False
    engines: dict[EngineKey, HostedEngine] = field(default_factory=dict)
    asked: list[StartEngine] = field(default_factory=list)
    stopped: list[StopEngine] = field(default_factory=list)
    held: dict[str, ReserveRequest] = field(default_factory=dict)

    async def attach(self, bus: Bus) -> None:
        await bus.serve(START_ENGINE, self.start, node_id=self.node_id)
        await bus.serve(STOP_ENGINE, self.stop, node_id=self.node_id)
        await bus.serve(LOOK_AT_ENGINES, self.look, node_id=self.node_id)
        await bus.serve(ENGINE_LOG, self.log, node_id=self.node_id)
        await bus.serve(RESERVE, self.reserve, node_id=self.node_id)
        await bus.serve(RELEASE, self.release, node_id=self.node_id)

    async def start(self, asked: StartEngine) -> HostedEngine:
        key = _key(asked)
        if key not in self.engines:
            self.asked.append(asked)
            how = self.starts.pop(0) if self.starts else "ok"
            ended = {"state": EngineState.FAILED, "ended_at": NOW, "exit_code": 1}
            became = {"state": EngineState.READY} if how == "ok" else {**ended, "last_words": FAILURES[how][1]}
            self.engines[key] = HostedEngine(
                **key.model_dump(),
                program=asked.program,
                model_name=asked.model_name,
                url=f"http://{self.node_id}:8000" if asked.serves else None,
                started_at=NOW,
                **became,
            )
        return self.engines[key]

    async def stop(self, asked: StopEngine) -> HostedEngines:
        if self.gone:
            raise Unavailable("it is not there")
        self.stopped.append(asked)
        found = self.engines.get(_key(asked))
        if found is not None and found.ended_at is None:
            ended = found.model_copy(update={"state": EngineState.STOPPED, "ended_at": NOW})
            self.engines[_key(asked)] = ended
        return await self.look(LookAtEngines())

    async def look(self, _: LookAtEngines) -> HostedEngines:
        if self.gone:
            raise Unavailable("it is not there")
        return HostedEngines(node_id=self.node_id, boot_id="b", engines=tuple(self.engines.values()))

    async def log(self, asked: ReadEngineLog) -> EngineLog:
        return EngineLog(**_key(asked).model_dump(), text=f"log of {asked.instance}")

    async def reserve(self, asked: ReserveRequest) -> Reservation:
        assert asked.reservation_id is not None
        if self.refuses:
            raise Conflict("it was just given to somebody else")
        for uuid in asked.gpu_uuids or ():
            if self.free_mb(uuid) < asked.required_mb:
                raise Conflict(f"{uuid} has {self.free_mb(uuid)} MiB free")
        self.held[asked.reservation_id] = asked
        return self.reservation(asked)

    async def release(self, asked: Release) -> Reservation:
        if self.gone:
            raise Unavailable("it is not there")
        if asked.reservation_id not in self.held:
            raise NotFound("there is none")
        return self.reservation(self.held.pop(asked.reservation_id))

    def reservation(self, asked: ReserveRequest) -> Reservation:
        return Reservation(
            reservation_id=asked.reservation_id or "",
            token=1,
            node_id=self.node_id,
            state=ReservationState.HELD,
            timeout_seconds=60,
            reserved_at=NOW,
        )

    def free_mb(self, uuid: str) -> int:
        taken = sum(each.required_mb for each in self.held.values() if uuid in (each.gpu_uuids or ()))
        return self.cards[int(uuid.rsplit("-", 1)[1])].total_mb - taken

    def running(self) -> list[HostedEngine]:
        return [each for each in self.engines.values() if each.ended_at is None]

    def fail(self, how: str) -> None:
        """Everything that runs here ends so."""
        for key, each in self.engines.items():
            if each.ended_at is None:
                ended = {"state": EngineState.FAILED, "ended_at": NOW, "last_words": FAILURES[how][1]}
                self.engines[key] = each.model_copy(update=ended)

    def view(self) -> NodeView:
        uuids = [f"GPU-{self.node_id}-{number}" for number in range(len(self.cards))]
        gpus = tuple(
            Gpu(
                uuid=uuid,
                index=number,
                name=card.name,
                vendor="nvidia",
                vram_total_mb=card.total_mb,
                vram_free_mb=card.total_mb,
                compute_capability=card.capability,
            )
            for number, (uuid, card) in enumerate(zip(uuids, self.cards, strict=True))
        )
        return NodeView(
            node_id=self.node_id,
            state=NodeState.OFFLINE if self.gone else NodeState.ONLINE,
            tier=Tier.GPU_PEER,
            inventory=Inventory(
                hostname=self.node_id,
                platform=Kind.CUDA,
                operating_system="Debian 12",
                gpus=gpus,
                memory=Memory(total_mb=self.ram_mb, available_mb=self.ram_mb),
                network=(NetworkAddress(interface="eth0", address=f"10.0.0.{len(self.node_id)}"),),
            ),
            boot_id="b",
            announced_at=NOW,
            memory_available_mb=self.ram_mb - sum(each.ram_mb for each in self.held.values()),
            gpus=tuple(GpuBeat(uuid=uuid, vram_free_mb=self.free_mb(uuid)) for uuid in uuids),
        )


class House:
    """`ask` speaks with whichever orchestrator answers."""

    def __init__(self, server: MemoryServer, bus: Bus, folder: Path, machines: list[Machine]) -> None:
        self.server = server
        self.bus = bus
        self.folder = folder
        self.machines = {each.node_id: each for each in machines}

    async def found(self, asked: NodeQuery) -> NodesFound:
        views = [each.view() for each in self.machines.values()]
        kept = [
            each
            for each in views
            if (not asked.online_only or each.state is NodeState.ONLINE)
            and (asked.node_ids is None or each.node_id in asked.node_ids)
        ]
        return NodesFound(nodes=tuple(kept), total=len(kept))

    async def ask(self, **question: Any) -> VllmReply:
        """Again while nobody leads: a take-over takes its time."""
        asked = VllmRequest.model_validate(question)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                try:
                    return await self.bus.request(VLLM_REQUEST, asked, timeout=PATIENCE_SECONDS)
                except (Unavailable, SteppedDown):
                    await asyncio.sleep(0.02)

    async def deploy(self, name: str = "one", **fields: Any) -> InstanceView:
        asked = {"model_name": LLAMA, "instance_name": name, "max_model_len": 4096} | fields
        reply = await self.ask(deploy=asked)
        assert reply.instance is not None
        return reply.instance

    async def until(self, holds: Callable[[InstanceView], object], name: str = "one") -> InstanceView:
        told = None
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while True:
                    told = (await self.ask(instance={"instance_name": name})).instance
                    assert told is not None
                    if holds(told):
                        return told
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"{told}\n{await self.events(name)}") from None

    async def until_ready(self, name: str = "one") -> InstanceView:
        return await self.until(lambda told: told.state == "READY", name)

    async def until_gone(self, name: str = "one") -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while any(each.instance_name == name for each in await self.all()):
                await asyncio.sleep(0.02)

    async def all(self) -> tuple[InstanceView, ...]:
        reply = await self.ask(instances={})
        assert reply.instances is not None
        return reply.instances.instances

    async def events(self, name: str = "one") -> list[InstanceEvent]:
        reply = await self.ask(events={"instance_name": name})
        assert reply.events is not None
        return list(reply.events.events)

    @asynccontextmanager
    async def orchestrator(self, name: str = "first", **settings: Any) -> AsyncIterator[asyncio.Task[None]]:
        """One that runs, beside others perhaps. Its task ends it at once when it is cancelled."""
        clock = SystemClock()
        async with self.server.connect(name) as transport:
            bus = Bus(transport, name=name, observer=SilentObserver(), clock=clock)
            platform = Platform(
                bus=bus,
                clock=clock,
                metrics=CollectorRegistry(),
                node_id=name,
                boot_id="b",
                data_dir=self.folder / name,
            )
            chosen = {"VLLM_MODELS_FOLDER": self.folder / "models", "HF_HUB_OFFLINE": True, "VLLM_WAIT_SECONDS": 0.1}
            service = build(platform, Settings.model_validate(chosen | settings))
            for stream in service.streams:
                await transport.ensure_stream(stream)
            for bucket in service.buckets:
                await transport.ensure_bucket(bucket)
            async with service.lifespan():
                await service.subscriptions()
                running = asyncio.create_task(_all(service.loops))
                try:
                    yield running
                finally:
                    running.cancel()
                    await asyncio.gather(running, return_exceptions=True)


async def _all(loops: Any) -> None:
    async with asyncio.TaskGroup() as group:
        for loop in loops:
            group.create_task(loop())


def _key(asked: EngineKey) -> EngineKey:
    return EngineKey(instance=asked.instance, replica=asked.replica, generation=asked.generation, rank=asked.rank)


@asynccontextmanager
async def house_of(folder: Path, *machines: Machine) -> AsyncIterator[House]:
    """Without an orchestrator yet."""
    for name in (LLAMA, LARGE):
        (folder / "models" / name).mkdir(parents=True)
        (folder / "models" / name / "config.json").write_text(json.dumps(config(name)))
    clock = SystemClock()
    server = MemoryServer(clock=clock)
    async with AsyncExitStack() as stack:
        transport = await stack.enter_async_context(server.connect("machines"))
        bus = Bus(transport, name="machines", observer=SilentObserver(), clock=clock)
        made = House(server, bus, folder, list(machines))
        await transport.ensure_stream(VLLM_LOG)
        await bus.serve(QUERY, made.found)
        for machine in machines:
            await machine.attach(bus)
        yield made
