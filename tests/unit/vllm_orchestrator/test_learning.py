"""Starts are measured once, kept for all orchestrators and the next lives of this one, and correct plans."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from libs.common.bus.bus import Bus
from libs.common.bus.memory.transport import MemoryServer
from libs.common.bus.observer import SilentObserver
from libs.common.clock import ManualClock
from libs.common.contracts.streams import VLLM_STARTS
from libs.common.contracts.vllm_instances import DeployRequest, KeptStart
from libs.common.contracts.vllm_orchestrator import PlanGpu, PlanNode, PlanRequest
from libs.common.errors import Unavailable
from libs.inference.planner.devices import Gpu
from libs.inference.planner.memory import GIB, budget_of
from services.vllm_orchestrator.learning import STARTS_OF_A_KIND, Learning
from services.vllm_orchestrator.model import ModelDocuments, StartedEngine
from services.vllm_orchestrator.planning import Planning
from tests.unit.inference.planner.published import config

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
CARD = Gpu(uuid="GPU-1", node_id="a", total=24 * GIB, free=24 * GIB, name="NVIDIA L4")


class KnownModels:
    async def read(self, model_name: str, revision: str | None) -> ModelDocuments:
        return ModelDocuments(model_name=model_name, config=config(LLAMA))


class House:
    def __init__(self, bus: Bus, clock: ManualClock) -> None:
        self.engines: list[StartedEngine] = []
        self.log = "Model loading took 14.99 GiB\nAvailable KV cache memory: 1.00 GiB\n"
        self.metrics = ""
        self.reads = 0
        self.readable = True
        self.clock = clock
        self.learning = Learning(
            bus,
            clock,
            KnownModels(),  # type: ignore[arg-type]  # GGUF files play no part
            started=self.started,
            read_log=self.read,
            read_metrics=self.read_metrics,
        )
        self.planning = Planning(bus, clock, KnownModels(), (), lambda: self.learning.starts)  # type: ignore[arg-type]

    async def started(self) -> list[StartedEngine]:
        return self.engines

    async def read(self, engine: StartedEngine) -> str:
        self.reads += 1
        if not self.readable:
            raise Unavailable("the agent does not answer")
        return self.log

    async def read_metrics(self, engine: StartedEngine) -> str:
        if self.metrics == "away":
            raise Unavailable("the engine does not answer")
        return self.metrics

    def starts(self, *names: str) -> None:
        self.engines = [
            StartedEngine(
                key=name,
                place=(name, 0),
                request=DeployRequest(model_name=LLAMA, instance_name="one"),
                arguments=(LLAMA, "--max-num-seqs", "256"),
                gpus=(CARD,),
            )
            for name in names
        ]

    async def tokens(self) -> tuple[int, str]:
        node = PlanNode(node_id="a", gpus=(PlanGpu(uuid="GPU-1", name="NVIDIA L4", total_bytes=24 * GIB),))
        asked = PlanRequest(model_name=LLAMA, max_model_len=4096, max_num_seqs=256, nodes=(node,))
        answer = await self.planning.plan(asked)
        return answer.kv_cache_tokens, " ".join(answer.reasons)


Another = Callable[[], Awaitable[House]]


@pytest.fixture
async def another() -> AsyncIterator[Another]:
    """Orchestrators on one bus, each hearing what is kept."""
    clock = ManualClock()
    server = MemoryServer(clock=clock)

    @asynccontextmanager
    async def living() -> AsyncIterator[Another]:
        async with server.connect("orchestrator") as transport, asyncio.TaskGroup() as hearing:
            await transport.ensure_bucket(VLLM_STARTS)
            tasks = []

            async def make() -> House:
                house = House(Bus(transport, name="o", observer=SilentObserver(), clock=clock), clock)
                tasks.append(hearing.create_task(house.learning.hear()))
                return house

            yield make
            for task in tasks:
                task.cancel()

    with suppress(asyncio.CancelledError):
        async with living() as make:
            yield make


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0)


async def test_a_start_is_measured_once_and_corrects_the_next_plan(another: Another):
    house = await another()
    before, _ = await house.tokens()
    house.starts("one/1")
    for _ in range(3):
        await house.learning.round()
    after, reasons = await house.tokens()

    assert house.reads == 1
    assert after < before
    assert "corrected by 1 measured starts" in reasons
    (kept,) = (await house.learning.known()).starts
    beside = kept.predicted.non_torch_bytes or 0
    peak = budget_of(24 * GIB, 0.92) - int(14.99 * GIB) - GIB - beside
    assert (kept.start, kept.gpu, kept.measured.activation_bytes) == ("one/1", "NVIDIA L4", peak)


async def test_what_was_measured_is_there_for_the_next_orchestrator(another: Another):
    house = await another()
    house.starts("one/1")
    await house.learning.round()

    later = await another()
    await until(lambda: later.learning.count() == 1)
    assert later.learning.starts == house.learning.starts
    later.starts("one/1")
    await later.learning.round()
    assert later.reads == 0


async def test_of_starts_that_are_alike_the_latest_are_kept(another: Another):
    house = await another()
    for place in range(STARTS_OF_A_KIND + 3):
        house.starts(f"one/{place}")
        house.clock.advance(1)
        await house.learning.round()
    kept = [each.start for each in (await house.learning.known()).starts]
    assert kept == [f"one/{place}" for place in range(STARTS_OF_A_KIND + 2, 2, -1)]


async def test_a_log_that_cannot_be_read_is_tried_again_a_few_times(another: Another):
    house = await another()
    house.starts("one/1")
    house.readable = False
    for _ in range(9):
        await house.learning.round()
    assert (house.reads, house.learning.count()) == (5, 0)

    house.starts("two/1")
    await house.learning.round()
    house.readable = True
    await house.learning.round()
    assert house.learning.count() == 1


async def test_a_log_that_tells_nothing_is_read_once(another: Another):
    house = await another()
    house.starts("one/1")
    house.log = "Application startup complete."
    for _ in range(3):
        await house.learning.round()
    assert (house.reads, house.learning.count()) == (1, 0)


def _told(blocks: int) -> str:
    return f'vllm:cache_config_info{{block_size="16",engine="0",num_gpu_blocks="{blocks}"}} 1.0\n'


BLOCKS_OF_A_GIB = GIB // (32 * 2 * 8 * 128 * 2 * 16)


async def _measured(house: House) -> KeptStart:
    house.starts("one/1")
    for _ in range(6):
        await house.learning.round()
    (kept,) = (await house.learning.known()).starts
    return kept


async def test_metrics_teach_what_a_log_of_other_words_does_not_tell(another: Another):
    house = await another()
    house.log, house.metrics = "Application startup complete.", _told(BLOCKS_OF_A_GIB)

    kept = await _measured(house)

    others = (kept.predicted.cuda_graph_bytes or 0) + (kept.predicted.non_torch_bytes or 0)
    peak = budget_of(24 * GIB, 0.92) - 14.99 * GIB - GIB - others
    assert kept.measured.activation_bytes == pytest.approx(peak, abs=GIB // 100)


async def test_metrics_teach_where_no_log_can_be_read(another: Another):
    house = await another()
    house.readable, house.metrics = False, _told(BLOCKS_OF_A_GIB)

    assert (await _measured(house)).measured.activation_bytes is not None
    assert house.reads == 5


@pytest.mark.parametrize("metrics", [_told(12_345), "away", "", "vllm:cache_config_info{} 1.0"])
async def test_the_log_counts_where_it_tells(another: Another, metrics: str):
    house = await another()
    house.metrics = metrics

    kept = await _measured(house)

    peak = budget_of(24 * GIB, 0.92) - int(14.99 * GIB) - GIB - (kept.predicted.non_torch_bytes or 0)
    assert kept.measured.activation_bytes == peak
