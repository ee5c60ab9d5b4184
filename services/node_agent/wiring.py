"""The only place where the agent's parts meet."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import uuid4

import httpx

from libs.common.contracts.engine_hosting import StartEngine
from libs.common.contracts.gpu_orchestrator import COMMIT, Commit, Reservation
from libs.common.contracts.node_registry import EngineState
from libs.common.contracts.streams import WORK_OBJECTS, WORK_OUT
from libs.common.errors import WrongSetting
from libs.common.kit.loops import every
from libs.common.kit.service import Check, Platform, Service, degraded_while
from libs.common.kit.settings import load
from services.node_agent.attempts import Pool
from services.node_agent.claiming import Claiming
from services.node_agent.container_spec import ContainerRules
from services.node_agent.containers_folder import DiskWorkFolders
from services.node_agent.draining import Draining
from services.node_agent.engine import EngineDoor, KeptEngine
from services.node_agent.engine_facts import EngineSpec
from services.node_agent.engine_folder import EngineFolder
from services.node_agent.engine_gguf import ram_mb_of
from services.node_agent.engine_http import engine_client
from services.node_agent.engine_llama import LlamaEngine, llama_build, processors
from services.node_agent.engine_openai import OpenAIEngine
from services.node_agent.engine_tiny import TinyModel
from services.node_agent.hosted import EngineContainers, Hosted, HostedFiles
from services.node_agent.hosted_command import check_claim, model_of
from services.node_agent.hosted_door import EngineAddress
from services.node_agent.hosted_folder import DiskHostedFolders
from services.node_agent.hosted_network import address_of
from services.node_agent.hosted_process import HostedProcess
from services.node_agent.hosting import Hosting
from services.node_agent.http_api import routes
from services.node_agent.job_memory import MemoryOfJobs
from services.node_agent.large import Large
from services.node_agent.life import AgentLife, Work
from services.node_agent.nats_api import open_doors
from services.node_agent.observer_prometheus import PrometheusObserver, Sight
from services.node_agent.outbox import Outbox
from services.node_agent.process_posix import PosixLauncher
from services.node_agent.reports import Reports
from services.node_agent.runner_container import ContainerRunner
from services.node_agent.runner_function import FunctionRunner, load_functions
from services.node_agent.runner_openai import EngineRunner
from services.node_agent.runner_process import ProcessRunner
from services.node_agent.settings import Settings
from services.node_agent.store import Journal
from services.node_agent.store_sqlite import SqliteJournal
from services.node_agent.use_cases import NodeAgent

TINY_MODEL = "tiny-random-llama"
ENGINE_ID = "llama-1"
THEIR_ENGINE_ID = "openai-1"
FORGET_SECONDS = 600.0
COMMIT_SECONDS = 10.0


def build(platform: Platform, settings: Settings | None = None) -> Service:
    """Raises `WrongSetting`."""
    chosen = settings or load(Settings)
    folder = platform.data_dir / "node_agent"
    observer = PrometheusObserver(platform.metrics)
    journal = SqliteJournal(folder / "journal.db", machine_boot=platform.machine_boot)
    reports = Reports(platform.bus, platform.clock, node_id=platform.node_id, boot_id=platform.boot_id)
    outbox = Outbox(platform.bus, journal, platform.clock, observer)
    draining = Draining(platform.bus, journal, platform.clock, reports, node_id=platform.node_id)
    machinery = _machinery(platform, chosen, folder, observer, reports)
    large = Large(platform.bus)
    agent = NodeAgent(
        boot_id=platform.boot_id,
        clock=platform.clock,
        journal=journal,
        outbox=outbox,
        reports=reports,
        large=large,
        memory=MemoryOfJobs(Claiming(platform.bus, node_id=platform.node_id), large, platform.clock),
        draining=draining,
        observer=observer,
        pools=machinery.pools,
        engines=machinery.doors,
    )
    observer.watch(
        Sight(
            running=lambda: len(agent.running()),
            slots=lambda: sum(pool.slots for pool in agent.pools()),
            free_slots=lambda: sum(pool.free_slots for pool in agent.pools()),
            undelivered=lambda: outbox.undelivered,
            draining=lambda: agent.draining,
            engines=agent.engine_views,
        )
    )
    life = AgentLife(
        agent=agent,
        journal=journal,
        outbox=outbox,
        reports=reports,
        beside={"registry": draining.keep_asking, **machinery.works()},
        last=machinery.close,
        drain_seconds=chosen.agent_drain_seconds,
    )
    return Service(
        port=chosen.port,
        uses=[WORK_OUT, WORK_OBJECTS.stream],
        lifespan=life.alive,
        subscriptions=partial(open_doors, platform.bus, agent, machinery.hosting, platform.node_id),
        loops=[
            life.nothing_ended,
            every(FORGET_SECONDS, agent.forget, platform.clock, name="forget_old_attempts"),
        ],
        router=routes(agent),
        checks=_checks(journal, machinery),
    )


@dataclass(frozen=True, kw_only=True)
class _Machinery:
    """What runs jobs, and what is to be closed afterwards. `doors` and `pools` change with the hosted engines."""

    engines: Sequence[KeptEngine]
    doors: list[EngineDoor]
    pools: list[Pool]
    hosting: Hosting
    functions: FunctionRunner | ProcessRunner | None
    containers: "_ContainerWork | None"
    launcher: PosixLauncher
    clients: Sequence[httpx.AsyncClient]

    def works(self) -> Mapping[str, Work]:
        """What must go on for as long as the agent lives."""
        works: dict[str, Work] = {f"engine {engine.now().engine_id}": engine.run for engine in self.engines}
        works["hosting"] = self.hosting.run
        return works | {"containers": self.containers.runner.upkeep} if self.containers else works

    async def close(self) -> None:
        await self.hosting.close()
        for engine in self.engines:
            await engine.stop()
        if self.containers is not None:
            self.containers.close()
        if self.functions is not None:
            await self.functions.close()
        for client in self.clients:
            await client.aclose()
        self.launcher.close()


def _machinery(
    platform: Platform, settings: Settings, folder: Path, observer: PrometheusObserver, reports: Reports
) -> _Machinery:
    launcher, client = PosixLauncher(), engine_client()
    engines = [_engine(platform, settings, folder, launcher, client, reports)] if settings.engine != "none" else []
    pools = [Pool(EngineRunner(engine, client, observer)) for engine in engines]
    functions = _functions(settings, reports) if settings.functions else None
    containers = _containers(platform, settings, folder, observer, reports) if settings.container_images else None
    pools += [Pool(functions)] if functions else []
    pools += [Pool(containers.runner)] if containers else []
    doors: list[EngineDoor] = [*engines]
    address = address_of(settings.engine_host, settings.engine_address, settings.said(settings.engine_api_key))
    own_client = engine_client(address.headers)
    contained = _contained(platform, settings, folder)
    workshop = _Workshop(platform, settings, folder, launcher, own_client, address, contained, reports)
    return _Machinery(
        engines=engines,
        doors=doors,
        pools=pools,
        hosting=_hosting(workshop, doors, pools, observer),
        functions=functions,
        containers=containers,
        launcher=launcher,
        clients=(client, own_client),
    )


@dataclass(frozen=True)
class _Workshop:
    """What hosted engines are made with."""

    platform: Platform
    settings: Settings
    folder: Path
    launcher: PosixLauncher
    client: httpx.AsyncClient
    address: EngineAddress
    containers: EngineContainers | None
    reports: Reports

    def make(self, asked: StartEngine, files: HostedFiles) -> HostedProcess:
        return HostedProcess(
            asked,
            files=files,
            launcher=self.launcher,
            client=self.client,
            clock=self.platform.clock,
            allowed=self.settings.programs,
            address=self.address,
            containers=self.containers,
            commit=self.commit,
            test_model=self.test_model,
            changed=self.reports.workload_changed,
        )

    async def commit(self, asked: StartEngine, pid: int, container_id: str | None) -> None:
        holder = {"pid": pid} if container_id is None else {"container_id": container_id}
        for more in asked.more_reservations:
            await self._commit(more.reservation_id, more.token, holder)
        if asked.reservation_id is not None:
            held = await self._commit(asked.reservation_id, asked.reservation_token, holder)
            if (path := model_of(asked)) is not None:
                context = asked.context_tokens or 0
                needed = await asyncio.to_thread(ram_mb_of, Path(path), slots=asked.slots, context=context)
                check_claim(held.ram_mb, needed)

    async def _commit(self, reservation_id: str, token: int | None, holder: Mapping[str, object]) -> Reservation:
        commit = Commit.model_validate({"reservation_id": reservation_id, "token": token, **holder})
        bus, node_id = self.platform.bus, self.platform.node_id
        return await bus.request(COMMIT, commit, node_id=node_id, timeout=COMMIT_SECONDS)

    async def test_model(self) -> str:
        tiny = TinyModel(self.launcher, path=(self.folder / f"{TINY_MODEL}.gguf").resolve())
        await tiny.ensure()
        return str(tiny.path)


def _contained(platform: Platform, settings: Settings, folder: Path) -> EngineContainers | None:
    """Raises `WrongSetting` when the optional extra is not installed."""
    if not settings.engine_images:
        return None
    try:
        from services.node_agent.hosted_docker import DockerEngines
    except ModuleNotFoundError as error:
        raise _lacks_docker("ENGINE_IMAGES lets engines run in containers here", error) from error
    return DockerEngines(
        settings.docker_host,
        node_id=platform.node_id,
        images=settings.engine_images,
        folders=settings.engine_folders,
        cache=settings.engine_cache or (folder / "engine-cache").resolve(),
        hub_token=settings.said(settings.hub_token),
    )


def _lacks_docker(why: str, error: ModuleNotFoundError) -> WrongSetting:
    needs = f"{why}, which needs Docker's SDK ({error.name} is missing)"
    return WrongSetting(f'{needs}; install the extra: pip install "compute-mesh[containers]".')


def _hosting(workshop: _Workshop, doors: list[EngineDoor], pools: list[Pool], observer: PrometheusObserver) -> Hosting:
    at_work: dict[int, Pool] = {}

    def shown(engine: Hosted) -> None:
        doors.append(engine)
        if engine.asked.serves:
            at_work[id(engine)] = Pool(EngineRunner(engine, workshop.client, observer))
            pools.append(at_work[id(engine)])

    def hidden(engine: Hosted) -> None:
        doors.remove(engine)
        if engine.asked.serves:
            pools.remove(at_work.pop(id(engine)))
        workshop.reports.workload_changed()

    return Hosting(
        DiskHostedFolders(workshop.folder),
        workshop.make,
        node_id=workshop.platform.node_id,
        boot_id=workshop.platform.boot_id,
        shown=shown,
        hidden=hidden,
    )


def _functions(settings: Settings, reports: Reports) -> FunctionRunner | ProcessRunner:
    """Raises `WrongSetting` for a function that is not there."""
    found = load_functions(settings.functions, variable="AGENT_FUNCTIONS")
    slots, freed = settings.agent_function_slots, reports.workload_changed
    if settings.agent_function_processes:
        grace_seconds = settings.agent_function_grace_seconds
        return ProcessRunner(settings.functions, slots=slots, grace_seconds=grace_seconds, freed=freed)
    return FunctionRunner(found, slots=slots, freed=freed)


@dataclass(frozen=True, kw_only=True)
class _ContainerWork:
    """What runs containers, and what is to be closed afterwards."""

    runner: ContainerRunner
    problem: Callable[[], str | None]
    close: Callable[[], None]


def _containers(
    platform: Platform, settings: Settings, folder: Path, observer: PrometheusObserver, reports: Reports
) -> _ContainerWork:
    """Raises `WrongSetting` when the optional extra is not installed."""
    try:
        from services.node_agent.containers_docker import DockerContainers
    except ModuleNotFoundError as error:
        raise _lacks_docker("CONTAINER_IMAGES lets containers run here", error) from error
    docker = DockerContainers(settings.docker_host, node_id=platform.node_id, slots=settings.container_slots)
    folders = DiskWorkFolders(folder / "containers")
    runner = ContainerRunner(
        docker,
        folders,
        rules=ContainerRules(
            images=settings.container_images,
            cpus=settings.container_cpus,
            memory_mb=settings.container_memory_mb,
            disk_mb=settings.container_disk_mb,
            gpus=settings.container_gpus,
            network=settings.container_network,
        ),
        slots=settings.container_slots,
        grace_seconds=settings.container_grace_seconds,
        clock=platform.clock,
        observer=observer,
        changed=reports.workload_changed,
    )

    def close() -> None:
        docker.close()
        folders.close()

    return _ContainerWork(runner=runner, problem=docker.problem, close=close)


def _engine(
    platform: Platform,
    settings: Settings,
    folder: Path,
    launcher: PosixLauncher,
    client: httpx.AsyncClient,
    reports: Reports,
) -> KeptEngine:
    if settings.engine_url is not None and settings.engine == "openai":
        return OpenAIEngine(
            THEIR_ENGINE_ID,
            url=settings.engine_url.rstrip("/").removesuffix("/v1"),
            model_name=settings.model_name,
            slots=settings.engine_slots,
            embeddings=settings.engine_embeddings,
            client=client,
            clock=platform.clock,
            changed=reports.workload_changed,
        )
    spec = _spec(settings, folder)
    tiny = TinyModel(launcher, path=Path(spec.model_path)) if spec.test_model else None
    return LlamaEngine(
        spec,
        files=EngineFolder(folder),
        launcher=launcher,
        client=client,
        clock=platform.clock,
        start_seconds=settings.engine_start_seconds,
        changed=reports.workload_changed,
        claims=Claiming(platform.bus, node_id=platform.node_id),
        ram_mb=partial(
            asyncio.to_thread, ram_mb_of, Path(spec.model_path), slots=spec.slots, context=spec.context_tokens
        ),
        make_id=lambda: uuid4().hex,
        prepare=tiny.ensure if tiny else None,
    )


def _spec(settings: Settings, folder: Path) -> EngineSpec:
    model = settings.model
    path = model or (folder / f"{TINY_MODEL}.gguf").resolve()
    return EngineSpec(
        engine_id=ENGINE_ID,
        model_path=str(path),
        model_version="{0.st_size}:{0.st_mtime_ns}".format(path.stat()) if model else "test",
        model_name=settings.model_name or path.stem,
        test_model=model is None,
        threads=settings.engine_threads or (processors() if model else 1),
        slots=settings.engine_slots,
        context_tokens=settings.engine_context,
        embeddings=settings.engine_embeddings,
        device=settings.engine_device,
        build=llama_build(),
    )


def _checks(journal: Journal, machinery: _Machinery) -> Mapping[str, Check]:
    async def journal_writable() -> str | None:
        return journal.problem()

    async def engine_ready(engine: KeptEngine) -> str | None:
        now = engine.now()
        return None if now.state == EngineState.READY else f"{now.state}" + (f": {now.problem}" if now.problem else "")

    checks: dict[str, Check] = {"journal": journal_writable}
    if machinery.containers is not None:
        checks["containers"] = degraded_while(machinery.containers.problem)
    return checks | {f"engine {engine.now().engine_id}": partial(engine_ready, engine) for engine in machinery.engines}
