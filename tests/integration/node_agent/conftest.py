"""A real engine with the test model, and what else tests of the agent need."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from libs.common.clock import SystemClock
from libs.common.contracts.node_registry import EngineState
from libs.common.errors import MeshError, NotFound
from services.node_agent.claims import Wanted
from services.node_agent.engine_facts import EngineSpec
from services.node_agent.engine_folder import EngineFolder
from services.node_agent.engine_gguf import ram_mb_of
from services.node_agent.engine_http import engine_client
from services.node_agent.engine_llama import LlamaEngine
from services.node_agent.engine_tiny import TinyModel
from services.node_agent.process_posix import PosixLauncher
from tests.docker_process import DockerProcess, docker_process


async def until(condition: Callable[[], object], *, seconds: float = 20.0) -> None:
    """Wait until the condition holds; fails after `seconds`."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


def runs(pid: int) -> bool:
    """Whether there is such a process; one that ended and that nobody has collected yet does not run."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def spec_in(folder: Path) -> EngineSpec:
    return EngineSpec(
        engine_id="engine-1",
        model_path=str(folder / "tiny-random-llama.gguf"),
        model_version="1",
        model_name="tiny-random-llama",
        test_model=True,
        threads=1,
        slots=4,
        context_tokens=1024,
        embeddings=False,
        device="auto",
        build="1",
    )


class MadeUpLedger:
    """Gives what is asked for, unless it is told to raise something."""

    def __init__(self) -> None:
        self.problem: MeshError | None = None
        self.reserved: dict[str, Wanted] = {}
        self.committed: dict[str, int] = {}

    async def reserve(self, wanted: Wanted) -> tuple[str, ...]:
        if self.problem is not None:
            raise self.problem
        self.reserved[wanted.claim_id] = wanted
        return ()

    async def commit(self, claim_id: str, *, pid: int | None = None, container_id: str | None = None) -> None:
        if self.problem is not None:
            raise self.problem
        if claim_id not in self.reserved:
            raise NotFound(claim_id)
        self.committed[claim_id] = pid or 0

    async def release(self, claim_id: str) -> None:
        self.reserved.pop(claim_id, None)
        self.committed.pop(claim_id, None)


class EngineAtWork:
    """An engine and its supervising task, as an agent would hold them."""

    def __init__(self, folder: Path, ledger: MadeUpLedger, **changes: object) -> None:
        self.changes = 0
        self.ledger = ledger
        self.spec = replace(spec_in(folder), **changes)  # type: ignore[arg-type]
        self.launcher = PosixLauncher()
        self.client = engine_client()
        self.engine = LlamaEngine(
            self.spec,
            files=EngineFolder(folder),
            launcher=self.launcher,
            client=self.client,
            clock=SystemClock(),
            start_seconds=20,
            changed=self._changed,
            claims=ledger,
            ram_mb=self._ram_mb,
            make_id=lambda: uuid4().hex,
            prepare=TinyModel(self.launcher, path=Path(self.spec.model_path)).ensure,
        )
        self.task = asyncio.ensure_future(self.engine.run())

    def _changed(self) -> None:
        self.changes += 1

    async def _ram_mb(self) -> int:
        return ram_mb_of(Path(self.spec.model_path), slots=self.spec.slots, context=self.spec.context_tokens)

    async def ready(self) -> str:
        await until(lambda: self.engine.now().state == EngineState.READY)
        url = self.engine.now().url
        assert url is not None
        return url

    async def forget(self) -> None:
        """End the supervision, and leave the process running: what a `kill -9` of the agent does."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.client.aclose()
        self.launcher.close()

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.engine.stop()
        await self.client.aclose()
        self.launcher.close()


EngineMaker = Callable[..., EngineAtWork]


@asynccontextmanager
async def engines(folder: Path) -> AsyncIterator[EngineMaker]:
    made: list[EngineAtWork] = []
    ledger = MadeUpLedger()

    def make(**changes: object) -> EngineAtWork:
        made.append(EngineAtWork(folder, ledger, **changes))
        return made[-1]

    try:
        yield make
    finally:
        for each in made:
            await each.stop()


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[EngineMaker]:
    async with engines(tmp_path) as make:
        yield make


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[DockerProcess]:
    with docker_process() as running:
        yield running


@pytest.fixture
def docker(docker_engine: DockerProcess) -> Iterator[DockerProcess]:
    """One engine for all tests; whatever a test left in it is gone before the next."""
    yield docker_engine
    for name in docker_engine.names():
        docker_engine.client.remove_container(name, force=True)
