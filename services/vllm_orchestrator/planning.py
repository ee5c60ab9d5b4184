"""Plans: how a model would be served. Nothing is reserved or started."""

import asyncio
import math
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

from libs.common.bus.bus import Bus
from libs.common.clock import Clock
from libs.common.contracts.gpu_orchestrator import GpuStates
from libs.common.contracts.node_registry import QUERY, NodeQuery
from libs.common.contracts.vllm_instances import InstancePart
from libs.common.contracts.vllm_orchestrator import (
    FittingModel,
    FittingModels,
    PlanAnswer,
    PlanRequest,
    Strategies,
    Strategy,
)
from libs.common.errors import Conflict, Malformed, MeshError
from libs.inference.planner.calibration import MeasuredStart
from libs.inference.planner.devices import Node
from libs.inference.planner.llama import GgufFacts, gguf_facts, llama_need, plan_llama
from libs.inference.planner.parameters import parameter_count
from libs.inference.planner.plan import Plan, plan
from services.vllm_orchestrator.answering import answer_of, answer_of_llama
from services.vllm_orchestrator.asking import naming_of, question_of
from services.vllm_orchestrator.machines import from_registry, from_request
from services.vllm_orchestrator.model import CatalogueEntry, ModelDocuments
from services.vllm_orchestrator.models import ModelSource
from services.vllm_orchestrator.placing import claimed, given_back
from services.vllm_orchestrator.reading import documents_of

QUERY_SECONDS = 5.0
MOST_NODES = 1000
LEDGER_SECONDS = 60.0
"""How long what a ledger told is believed."""

AT_ONCE = 2
"""Plans that are computed side by side: each keeps a processor busy."""

STRATEGIES = (
    ("SINGLE_GPU", "The whole model on one GPU."),
    ("TENSOR_PARALLEL", "Every layer divided over the GPUs of one node."),
    ("PIPELINE_PARALLEL", "Consecutive layers on one GPU each, in one node or over several."),
    ("HYBRID_TP_PP", "Consecutive layers on sets of GPUs that divide every layer among them."),
    ("CPU", "The model in the RAM of one machine, or divided over several, on their processors."),
)
PREFERENCES = (
    ("latency", "More GPUs side by side where that makes a single answer at least a fifth faster."),
    ("throughput", "The fastest GPUs first, and a pipeline before ranks that the PCI bus connects."),
    ("fewest_gpus", "The number of GPUs before everything else."),
)


class NoUsableDevice(Conflict):
    """There is no GPU and no RAM to plan with."""

    code: ClassVar[str] = "no_usable_device"


class Planning:
    def __init__(
        self,
        bus: Bus,
        clock: Clock,
        models: ModelSource,
        catalogue: Sequence[CatalogueEntry],
        starts: Callable[[], Sequence[MeasuredStart]] = tuple,
    ) -> None:
        self._bus = bus
        self._clock = clock
        self._models = models
        self._catalogue = catalogue
        self._starts = starts
        self._ledgers: dict[str, tuple[float, GpuStates]] = {}
        self._claims: list[tuple[float, InstancePart]] = []
        self._released: list[tuple[float, InstancePart]] = []
        self._computing = asyncio.Semaphore(AT_ONCE)

    async def hear(self, states: GpuStates) -> None:
        now = self._clock.monotonic()
        self._ledgers = {name: told for name, told in self._ledgers.items() if now - told[0] <= LEDGER_SECONDS}
        self._ledgers[states.node_id] = (now, states)

    def claimed(self, parts: Iterable[InstancePart]) -> None:
        """These were given memory just now: until their ledgers tell it, nobody else is planned there."""
        now = self._clock.monotonic()
        self._claims = [each for each in self._claims if now - each[0] <= LEDGER_SECONDS]
        self._claims += [(now, part) for part in parts]

    def given_back(self, parts: Iterable[InstancePart]) -> None:
        """These have no GPU memory any more: until their ledgers tell it, others are planned there all the same."""
        now = self._clock.monotonic()
        over = {part.reservation_id: part for part in parts}
        untold = {part.reservation_id for part in self._untold(self._claims)}
        self._claims = [each for each in self._claims if each[1].reservation_id not in over]
        self._released = [each for each in self._released if now - each[0] <= LEDGER_SECONDS]
        # How much RAM is free is measured, and may have been since.
        self._released += [
            (now, part.model_copy(update={"ram_mb": 0})) for name, part in over.items() if name not in untold
        ]

    async def plan(self, request: PlanRequest) -> PlanAnswer:
        """Raises `UnknownModel`, `GatedModel`, `Malformed`, `Unsupported`, `NoUsableDevice` or `Unavailable`."""
        nodes = await self.registered() if request.nodes is None else from_request(request.nodes)
        return await self.plan_on(request, nodes)

    async def plan_on(self, request: PlanRequest, nodes: Sequence[Node]) -> PlanAnswer:
        """The same on these machines, whatever the request names."""
        gguf = await self._gguf(request)
        documents = None if gguf else await documents_of(self._models, request)
        if not any(node.ram or any(gpu.free for gpu in node.gpus) for node in nodes):
            raise NoUsableDevice(
                f"none of the {len(nodes)} machines has a GPU with free memory, or says how much RAM is free"
            )
        if documents is None:
            assert gguf is not None
            plan = plan_llama(gguf, nodes, context=request.max_model_len, slots=_slots(request))
            return answer_of_llama(plan, gguf, model_name=request.model_name)
        return await self._computed(request, documents, nodes)

    async def ram_of_llama(self, path: str, *, slots: int, context: int) -> int:
        """Bytes that llama.cpp takes with a file on its machine. Raises `Malformed` where that cannot be read here."""
        header = await self._models.read_gguf("", path, None)
        return llama_need(gguf_facts(header), context=context, slots=slots).total

    async def strategies(self) -> Strategies:
        return Strategies(strategies=_told(STRATEGIES), preferences=_told(PREFERENCES))

    async def fitting(self, max_model_len: int, concurrency: float) -> FittingModels:
        """Every model of the catalogue on the machines that are online now. Raises `Unavailable`."""
        nodes = await self.registered()
        found = [await self._fitting(entry, nodes, max_model_len, concurrency) for entry in self._catalogue]
        return FittingModels(models=tuple(found))

    async def _fitting(
        self, entry: CatalogueEntry, nodes: Sequence[Node], max_model_len: int, concurrency: float
    ) -> FittingModel:
        request = PlanRequest(model_name=entry.model_name, max_model_len=max_model_len, concurrency=concurrency)
        try:
            documents = await self._known(entry)
            question = question_of(request, documents, nodes)
            length = min(max_model_len, question.facts.max_position or max_model_len)
            answer = await self._computed(request.model_copy(update={"max_model_len": length}), documents, nodes)
        except MeshError as error:
            return FittingModel(model_name=entry.model_name, fits=False, reason=error.message)
        return FittingModel(
            model_name=entry.model_name,
            parameters=parameter_count(question.facts),
            fits=answer.fits,
            strategy=answer.strategy,
            gpus=len(answer.memory_per_gpu),
            max_model_len=answer.max_model_len,
            max_concurrency=answer.max_concurrency,
            reason=answer.missing,
        )

    async def _known(self, entry: CatalogueEntry) -> ModelDocuments:
        if entry.config is not None:
            return ModelDocuments(model_name=entry.model_name, config=entry.config)
        return await self._models.read(entry.model_name, None)

    async def _gguf(self, request: PlanRequest) -> GgufFacts | None:
        if request.gguf_file is None:
            return None
        if request.model_name is None:
            raise Malformed("gguf_file is a file of a model: model_name is wanted", field="model_name")
        return gguf_facts(await self._models.read_gguf(request.model_name, request.gguf_file, request.revision))

    async def registered(self) -> tuple[Node, ...]:
        """The machines that are online and may get something new. Raises `Unavailable`."""
        wanted = NodeQuery(online_only=True, draining=False, limit=MOST_NODES)
        found = await self._bus.request(QUERY, wanted, timeout=QUERY_SECONDS)
        now = self._clock.monotonic()
        ledgers = {name: states for name, (at, states) in self._ledgers.items() if now - at <= LEDGER_SECONDS}
        nodes = given_back(from_registry(found.nodes, ledgers), self._untold(self._released))
        return claimed(nodes, self._untold(self._claims))

    def _untold(self, happened: Iterable[tuple[float, InstancePart]]) -> list[InstancePart]:
        return [part for at, part in happened if at >= self._told_at(part.node_id)]

    def _told_at(self, node_id: str) -> float:
        return max(self._ledgers.get(node_id, (0.0, None))[0], self._clock.monotonic() - LEDGER_SECONDS)

    async def _computed(self, request: PlanRequest, documents: ModelDocuments, nodes: Sequence[Node]) -> PlanAnswer:
        async with self._computing:
            return await asyncio.to_thread(_planned, request, documents, nodes, self._starts())


def _planned(
    request: PlanRequest, documents: ModelDocuments, nodes: Sequence[Node], starts: Sequence[MeasuredStart]
) -> PlanAnswer:
    question = question_of(request, documents, nodes, starts)
    found: Plan = plan(question, naming_of(request, documents), device=request.device)
    return answer_of(found, model_name=request.model_name, layers=len(question.facts.layers), engine=question.engine)


def _slots(request: PlanRequest) -> int:
    return request.max_num_seqs or math.ceil(request.concurrency)


def _told(pairs: Iterable[tuple[str, str]]) -> tuple[Strategy, ...]:
    return tuple(Strategy(name=name, summary=summary) for name, summary in pairs)
