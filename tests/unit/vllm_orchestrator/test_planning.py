"""Plans through the doors: what is asked, what is answered, and every kind of wrong question."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import ValidationError

from libs.common.bus.bus import Bus
from libs.common.bus.memory.transport import MemoryServer
from libs.common.bus.observer import SilentObserver
from libs.common.clock import ManualClock
from libs.common.contracts.gpu_orchestrator import GpuState, GpuStates, LedgerEntry
from libs.common.contracts.node_registry import (
    QUERY,
    Gpu,
    GpuBeat,
    GpuLink,
    Inventory,
    MigDevice,
    NodeQuery,
    NodesFound,
    NodeState,
    NodeView,
    Platform,
    Tier,
)
from libs.common.contracts.vllm_instances import DeployRequest, Instance, InstancePart, Replica
from libs.common.contracts.vllm_orchestrator import PlanGpu, PlanNode, PlanRequest
from libs.common.errors import Conflict, Malformed
from libs.inference.planner.architectures import model_facts
from libs.inference.planner.fields import Unsupported
from libs.inference.planner.gguf import GgufHeader
from libs.inference.planner.headers import StoredTensor
from libs.inference.planner.memory import GIB
from services.vllm_orchestrator.catalogue import catalogue_of, joined
from services.vllm_orchestrator.model import CatalogueEntry, ModelDocuments
from services.vllm_orchestrator.models import UnknownModel
from services.vllm_orchestrator.planning import NoUsableDevice, Planning
from services.vllm_orchestrator.seeking import Seeking
from tests.unit.inference.planner.published import LLAMA_8B_GGUF, config

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
NOW = datetime(2030, 1, 1, tzinfo=UTC)


class KnownModels:
    """A source that knows one model."""

    async def read(self, model_name: str, revision: str | None) -> ModelDocuments:
        if model_name != LLAMA:
            raise UnknownModel(f"the hub knows no model {model_name}")
        return ModelDocuments(model_name=model_name, config=config(LLAMA))

    async def read_gguf(self, model_name: str, file: str, revision: str | None) -> GgufHeader:
        weights = StoredTensor(name="w", type="Q4_K", shape=(1,), size=4 * GIB)
        return GgufHeader(metadata=LLAMA_8B_GGUF, tensors=(weights,), file_bytes=4 * GIB)


class House:
    """The planning of an orchestrator, and a registry that tells of the nodes given here."""

    def __init__(self, bus: Bus, clock: ManualClock) -> None:
        catalogue = (CatalogueEntry(model_name=LLAMA), CatalogueEntry(model_name="owner/unknown"))
        self.bus = bus
        self.clock = clock
        self.planning = Planning(bus, clock, KnownModels(), catalogue)
        self.nodes: list[NodeView] = []
        self.asked: list[NodeQuery] = []

    async def found(self, query: NodeQuery) -> NodesFound:
        self.asked.append(query)
        return NodesFound(nodes=tuple(self.nodes), total=len(self.nodes))


@pytest.fixture
async def house() -> AsyncIterator[House]:
    clock = ManualClock()
    server = MemoryServer(clock=clock)
    async with server.connect("orchestrator") as transport, server.connect("registry") as other:
        bus = Bus(transport, name="orchestrator", observer=SilentObserver(), clock=clock)
        registry = Bus(other, name="registry", observer=SilentObserver(), clock=clock)
        made = House(bus, clock)
        await registry.serve(QUERY, made.found)
        yield made


def _gpu(uuid: str = "GPU-1", gib: int = 24, free: int | None = None) -> PlanGpu:
    free_bytes = None if free is None else free * GIB
    return PlanGpu(uuid=uuid, name="NVIDIA GeForce RTX 4090", total_bytes=gib * GIB, free_bytes=free_bytes)


def _node(*gpus: PlanGpu, node_id: str = "a", linked: bool = False) -> PlanNode:
    links = (
        tuple(GpuLink(first=one.uuid, second=other.uuid, nvlinks=4) for one in gpus for other in gpus if one != other)
        if linked
        else ()
    )
    return PlanNode(node_id=node_id, gpus=gpus, links=links)


def _request(**fields: object) -> PlanRequest:
    asked = {"model_name": LLAMA, "max_model_len": 8192, "nodes": (_node(_gpu()),)} | fields
    return PlanRequest.model_validate({name: value for name, value in asked.items() if value is not None})


def _registered(free_mb: int, *, total_mb: int = 24576, beat_mb: int | None = None) -> NodeView:
    gpu = Gpu(uuid="GPU-1", index=3, name="RTX 4090", vendor="nvidia", vram_total_mb=total_mb, vram_free_mb=free_mb)
    beats = () if beat_mb is None else (GpuBeat(uuid="GPU-1", vram_free_mb=beat_mb),)
    return NodeView(
        node_id="r",
        state=NodeState.ONLINE,
        tier=Tier.GPU_PEER,
        inventory=Inventory(hostname="r", platform=Platform.CUDA, operating_system="Debian 12", gpus=(gpu,)),
        boot_id="b",
        announced_at=NOW,
        gpus=beats,
    )


async def test_a_plan_says_what_to_start_and_what_it_takes(house: House):
    answer = await house.planning.plan(_request())

    (row,) = answer.memory_per_gpu
    terms = row.weights_bytes + row.kv_cache_bytes + row.activation_bytes + row.cuda_graph_bytes + row.non_torch_bytes
    assert (answer.fits, answer.strategy, answer.tensor_parallel_size, answer.pipeline_parallel_size) == (
        True,
        "SINGLE_GPU",
        1,
        1,
    )
    assert (row.gpu_uuid, row.node_id) == ("GPU-1", "a")
    assert terms == row.budget_bytes <= row.free_bytes
    assert answer.vllm_args[0] == LLAMA
    assert answer.kv_cache_tokens > 8192
    assert answer.max_concurrency > 1
    assert answer.reasons
    assert answer.vllm_version == "0.33"


async def test_a_configuration_serves_instead_of_a_name(house: House):
    named = await house.planning.plan(_request())
    given = await house.planning.plan(_request(model_name=None, model_config=config(LLAMA)))

    assert given.memory_per_gpu == named.memory_per_gpu


async def test_a_configuration_may_say_how_large_its_files_are(house: House):
    computed, given, counted = [
        (await house.planning.plan(_request(**more))).memory_per_gpu[0].weights_bytes
        for more in ({}, {"weights_bytes": 12_000_000_000}, {"parameter_count": 6_000_000_000})
    ]

    assert given == pytest.approx(12_000_000_000, rel=0.01)
    assert counted == pytest.approx(12_000_000_000, rel=0.01)
    assert computed > 16_000_000_000


async def test_a_quantised_start_takes_less(house: House):
    plain, quantised = [
        (await house.planning.plan(_request(**more))).memory_per_gpu[0].weights_bytes
        for more in ({}, {"quantization": "fp8"})
    ]

    assert quantised < 0.6 * plain


async def test_forced_options_are_in_the_arguments(house: House):
    forced = {
        "tensor_parallel_size": 2,
        "pipeline_parallel_size": 1,
        "gpu_memory_utilization": 0.8,
        "max_num_seqs": 17,
        "max_num_batched_tokens": 1024,
        "kv_cache_dtype": "fp8",
        "enforce_eager": True,
    }
    answer = await house.planning.plan(_request(nodes=(_node(_gpu("1"), _gpu("2"), linked=True),), **forced))

    told = " ".join(answer.vllm_args)
    for words in ("tensor-parallel-size 2", "gpu-memory-utilization 0.8", "max-num-seqs 17", "kv-cache-dtype fp8"):
        assert f"--{words}" in told
    assert answer.strategy == "TENSOR_PARALLEL"


async def test_a_division_that_vllm_refuses_is_refused_in_its_words(house: House):
    gpus = (_gpu("1"), _gpu("2"), _gpu("3"))
    answer = await house.planning.plan(_request(nodes=(_node(*gpus),), tensor_parallel_size=3))

    assert not answer.fits
    assert answer.refused[0].message == (
        "Total number of attention heads (32) must be divisible by tensor parallel size (3)."
    )
    assert "tensor_parallel_size" in [change.option for change in answer.changes]


async def test_what_does_not_fit_says_what_is_missing_and_what_would(house: House):
    answer = await house.planning.plan(_request(max_model_len=131072))

    assert (answer.fits, answer.strategy, answer.memory_per_gpu) == (False, None, ())
    assert "GiB KV cache is needed" in answer.missing
    assert 0 < len(answer.changes) <= 3


async def test_a_pipeline_over_unlike_gpus_names_its_partition(house: House):
    small = PlanGpu(uuid="2", name="NVIDIA GeForce RTX 3060", total_bytes=12 * GIB)
    answer = await house.planning.plan(
        _request(model_name=None, model_config=config("Qwen/Qwen2.5-14B-Instruct"), nodes=(_node(_gpu("1"), small),))
    )

    assert answer.strategy == "PIPELINE_PARALLEL"
    assert sum(answer.layers_per_stage) == 48
    assert answer.environment["VLLM_PP_LAYER_PARTITION"] == ",".join(map(str, answer.layers_per_stage))


async def test_a_machine_without_gpus_is_planned_with_its_ram(house: House):
    machine = PlanNode(node_id="c", ram_free_bytes=64 * GIB, cpu_threads=8)
    answer = await house.planning.plan(_request(nodes=(machine,)))

    assert answer.strategy == "CPU"
    assert 16 * GIB < answer.ram_bytes < 64 * GIB


async def test_without_nodes_those_that_are_online_and_not_draining_are_asked_of_the_registry(house: House):
    house.nodes = [_registered(24000)]
    answer = await house.planning.plan(_request(nodes=None))

    assert answer.memory_per_gpu[0].node_id == "r"
    assert answer.environment["CUDA_VISIBLE_DEVICES"] == "3"
    assert (house.asked[0].online_only, house.asked[0].draining) == (True, False)


async def test_what_is_free_is_what_was_measured_last(house: House):
    house.nodes = [_registered(24000, beat_mb=1000)]

    assert not (await house.planning.plan(_request(nodes=None))).fits


async def _ledger_tells(house: House, *, claimed_mb: int) -> None:
    entry = LedgerEntry(total_mb=24576, claimed_mb=claimed_mb, free_mb=24000 - claimed_mb)
    state = GpuState(gpu=house.nodes[0].inventory.gpus[0], processes=None, ledger=entry)
    house.clock.advance(1)
    await house.planning.hear(GpuStates(node_id="r", boot_id="b", at=NOW, gpus=(state,)))
    house.clock.advance(1)


async def test_what_a_ledger_has_given_away_is_not_planned_with(house: House):
    house.nodes = [_registered(24000)]
    await _ledger_tells(house, claimed_mb=20000)

    assert not (await house.planning.plan(_request(nodes=None))).fits


async def test_what_an_engine_gave_back_is_planned_with_before_its_ledger_tells_of_it(house: House):
    house.nodes = [_registered(24000, beat_mb=4000)]
    uuid = house.nodes[0].inventory.gpus[0].uuid
    part = InstancePart(
        rank=0, node_id="r", arguments=(), gpu_uuids=(uuid,), required_mb=20000, reservation_id="one/1/r"
    )
    house.planning.claimed([part])
    await _ledger_tells(house, claimed_mb=20000)
    assert not (await house.planning.plan(_request(nodes=None))).fits

    house.planning.given_back([part])
    assert (await house.planning.plan(_request(nodes=None))).fits

    await _ledger_tells(house, claimed_mb=20000)
    assert not (await house.planning.plan(_request(nodes=None))).fits


async def test_what_no_ledger_knew_is_given_back_once(house: House):
    house.nodes = [_registered(24000)]
    await _ledger_tells(house, claimed_mb=20000)
    uuid = house.nodes[0].inventory.gpus[0].uuid
    part = InstancePart(
        rank=0, node_id="r", arguments=(), gpu_uuids=(uuid,), required_mb=20000, reservation_id="one/1/r"
    )
    house.planning.claimed([part])
    house.planning.given_back([part])

    assert not (await house.planning.plan(_request(nodes=None))).fits


@pytest.mark.parametrize("machines", [(), (_node(),), (_node(_gpu(free=0)),)])
async def test_machines_without_any_memory_are_no_plan(house: House, machines: tuple[PlanNode, ...]):
    with pytest.raises(NoUsableDevice, match="GPU with free memory"):
        await house.planning.plan(_request(nodes=machines))


async def test_the_catalogue_says_of_every_model_whether_it_fits(house: House):
    house.nodes = [_registered(24000)]
    found = {model.model_name: model for model in (await house.planning.fitting(8192, 1.0)).models}

    assert (found[LLAMA].fits, found[LLAMA].gpus) == (True, 1)
    assert not found["owner/unknown"].fits
    assert "knows no model" in found["owner/unknown"].reason


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"kv_cache_dtype": "fp7"}, Malformed, "kv_cache_dtype must be one of"),
        ({"quantization": "zip"}, Malformed, "quantization must be one of"),
        ({"dtype": "int1"}, Malformed, "dtype must be one of"),
        ({"vllm_version": "newest"}, Malformed, "vllm_version must be like"),
        ({"weights_bytes": 7}, Malformed, "weights_bytes is 7"),
        ({"model_name": "owner/nothing"}, UnknownModel, "knows no model"),
        ({"model_name": None, "model_config": {}}, Malformed, "model_config: architectures must"),
        (
            {"model_name": None, "model_config": {"architectures": ["LlamaForCausalLM"]}},
            Malformed,
            "model_config: ",
        ),
        (
            {"model_name": None, "model_config": config("deepseek-ai/DeepSeek-V4-Flash")},
            Unsupported,
            "cannot size",
        ),
        (
            {
                "model_name": None,
                "model_config": config(LLAMA, quantization_config={"quant_method": "awq"}),
                "quantization": "gptq",
            },
            Malformed,
            "does not match the quantization method",
        ),
    ],
)
async def test_a_wrong_question_names_what_is_wrong(
    house: House, fields: dict[str, object], error: type[Exception], words: str
):
    with pytest.raises(error, match=words):
        await house.planning.plan(_request(**fields))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_name": None}, "model_name or model_config"),
        ({"weights_bytes": 1, "parameter_count": 1}, "exclude each other"),
        ({"nodes": (_node(), _node())}, "node_id twice"),
        ({"nodes": (_node(_gpu()), _node(_gpu(), node_id="b"))}, "uuid twice"),
        ({"gpu_memory_utilization": 1.5}, "less than or equal to 1"),
        ({"max_model_len": 0}, "greater than or equal to 1"),
        ({"prefer": "beauty"}, "latency"),
    ],
)
def test_a_request_that_contradicts_itself_is_not_read(fields: dict[str, object], words: str):
    with pytest.raises(ValidationError, match=words):
        _request(**fields)


def test_a_gpu_has_no_more_free_than_it_has():
    with pytest.raises(ValidationError, match="free_bytes of GPU-1 is more than its total_bytes"):
        _gpu(gib=24, free=25)


def test_a_users_catalogue_adds_to_ours_and_replaces_entries_of_the_same_name():
    ours = catalogue_of('{"models": [{"model_name": "a", "model_config": {}}]}', "ours")
    theirs = catalogue_of('{"models": [{"model_name": "a"}, {"model_name": "b"}]}', "theirs")

    assert joined(ours, theirs) == (CatalogueEntry(model_name="a"), CatalogueEntry(model_name="b"))


def test_every_model_of_our_catalogue_can_be_sized():
    text = (Path(__file__).parents[3] / "services/vllm_orchestrator/catalogue.json").read_text(encoding="utf-8")
    entries = catalogue_of(text, "catalogue.json")

    assert len(entries) >= 10
    assert all(model_facts(entry.config or {}).doubts == () for entry in entries)


async def test_a_gguf_file_is_planned_for_llama_cpp_on_the_machine_with_most_ram(house: House):
    nodes = (PlanNode(node_id="a", ram_free_bytes=8 * GIB), PlanNode(node_id="b", ram_free_bytes=6 * GIB))
    answer = await house.planning.plan(_request(gguf_file="q4.gguf", nodes=nodes, concurrency=2))

    assert (answer.fits, answer.strategy, answer.max_concurrency) == (True, "CPU", 2)
    assert 6 * GIB < answer.ram_bytes < 7 * GIB
    assert "a serves it on its processor: weights 4096 MiB, cache 2048" in answer.reasons[-1]
    assert answer.confidence == "high"


async def test_a_gguf_file_that_does_not_fit_is_answered_with_what_would(house: House):
    nodes = (PlanNode(node_id="a", ram_free_bytes=6 * GIB),)
    answer = await house.planning.plan(_request(gguf_file="q4.gguf", nodes=nodes, concurrency=2))

    assert not answer.fits
    assert "a has 6.00 GiB free" in answer.missing
    assert [change.option for change in answer.changes] == ["max_model_len", "max_num_seqs"]


async def test_a_gguf_file_without_a_model_is_refused(house: House):
    with pytest.raises(Malformed, match="model_name is wanted"):
        await house.planning.plan(_request(model_name=None, model_config=config(LLAMA), gguf_file="q4.gguf"))


async def test_llama_cpp_claims_what_its_files_header_says(house: House):
    house.nodes = [_registered(0).model_copy(update={"memory_available_mb": 16384})]
    request = DeployRequest(
        model_name="m", instance_name="one", engine="llama.cpp", model_path="/models/q4.gguf", max_model_len=8192
    )
    instance = Instance(name="one", request=request, created_at=NOW, since=NOW)
    place = await Seeking(house.planning).place(instance, Replica(request=request, since=NOW), 1)

    assert 5 * 1024 < place.parts[0].ram_mb < 6 * 1024  # 4 GiB of weights, 1 of cache, and a step


async def test_a_machine_that_told_of_no_free_ram_is_not_said_to_have_none(house: House):
    house.nodes = [_registered(0)]
    request = DeployRequest(model_name="tiny", instance_name="one", engine="llama.cpp")
    instance = Instance(name="one", request=request, created_at=NOW, since=NOW)

    with pytest.raises(Conflict, match="256 MiB of RAM are wanted, and no machine told of any that is free"):
        await Seeking(house.planning).place(instance, Replica(request=request, since=NOW), 1)


async def test_parts_of_a_gpu_are_planned_with_what_the_ledger_has_left_of_each(house: House):
    view = _registered(0, total_mb=81920)
    parts = tuple(
        MigDevice(uuid=f"MIG-{place}", name="A100 MIG 3g.40gb", vram_total_mb=40960, vram_free_mb=40000)
        for place in range(2)
    )
    cut = view.inventory.gpus[0].model_copy(update={"mig_devices": parts})
    house.nodes = [view.model_copy(update={"inventory": view.inventory.model_copy(update={"gpus": (cut,)})})]
    claimed = LedgerEntry(total_mb=40960, claimed_mb=36864, free_mb=4096)
    state = GpuState(gpu=cut, parts={"MIG-0": claimed})
    await house.planning.hear(GpuStates(node_id="r", boot_id="b", at=NOW, gpus=(state,)))

    answer = await house.planning.plan(_request(nodes=None))
    assert [row.gpu_uuid for row in answer.memory_per_gpu] == ["MIG-1"]
    assert (answer.strategy, answer.confidence) == ("SINGLE_GPU", "low")


async def test_room_for_adapters_is_planned_and_asked_of_the_engine(house: House):
    bare, adapted = [
        await house.planning.plan(_request(**fields)) for fields in ({}, {"max_loras": 4, "max_lora_rank": 64})
    ]

    assert adapted.kv_cache_tokens < bare.kv_cache_tokens
    assert adapted.memory_per_gpu[0].weights_bytes - bare.memory_per_gpu[0].weights_bytes > GIB
    words = " ".join(adapted.vllm_args)
    assert "--enable-lora --max-loras 4 --max-lora-rank 64" in words
    assert any(reason.startswith("4 LoRA adapters of rank 64 take") for reason in adapted.reasons)


async def test_drafts_are_planned_and_asked_of_the_engine(house: House):
    head = {**config(LLAMA), "num_hidden_layers": 1, "draft_vocab_size": 32000}
    drafts = {"model": "owner/llama-eagle3", "model_config": head, "num_speculative_tokens": 3}
    bare, ahead = [await house.planning.plan(_request(**each)) for each in ({}, {"speculative_config": drafts})]

    assert ahead.kv_cache_tokens < bare.kv_cache_tokens
    assert ahead.memory_per_gpu[0].weights_bytes > bare.memory_per_gpu[0].weights_bytes
    place = ahead.vllm_args.index("--speculative-config")
    assert json.loads(ahead.vllm_args[place + 1]) == {"model": "owner/llama-eagle3", "num_speculative_tokens": 3}
    assert any(reason.startswith("3 tokens are guessed ahead (eagle3)") for reason in ahead.reasons)


async def test_another_model_that_guesses_is_read_like_any_other(house: House):
    drafts = {"method": "draft_model", "model": LLAMA, "num_speculative_tokens": 3}

    answer = await house.planning.plan(_request(speculative_config=drafts, nodes=(_node(_gpu(gib=80)),)))

    assert answer.memory_per_gpu[0].weights_bytes > 2 * 14 * GIB
    with pytest.raises(UnknownModel, match="owner/nothing"):
        await house.planning.plan(_request(speculative_config={**drafts, "model": "owner/nothing"}))


async def test_a_broken_draft_is_told_from_a_broken_model(house: House):
    drafts = {"model": "owner/draft", "model_config": {"architectures": ["X"]}, "num_speculative_tokens": 3}

    with pytest.raises(Malformed, match="the draft owner/draft: "):
        await house.planning.plan(_request(speculative_config=drafts))


@pytest.mark.parametrize(
    ("drafts", "sentence"),
    [
        ({"method": "eagle", "num_speculative_tokens": 3}, "model is wanted with the method eagle"),
        ({"method": "mtp", "model": "owner/x"}, "model is not for the method mtp"),
        ({"num_speculative_tokens": 3}, "method or model is wanted"),
        ({"method": "ngram", "prompt_lookup_min": 5, "prompt_lookup_max": 2}, "prompt_lookup_min=5 must be <="),
        ({"method": "mtp", "prompt_lookup_max": 2}, "are for the method ngram"),
    ],
)
def test_drafts_that_contradict_themselves_are_refused(drafts: dict[str, object], sentence: str):
    with pytest.raises(ValidationError, match=sentence):
        _request(speculative_config=drafts)


async def test_how_ranks_share_is_planned_and_asked_of_the_engine(house: House):
    machine = _node(*(_gpu(f"GPU-{place}", 80) for place in range(4)), linked=True)
    moe = {
        "model_name": None,
        "model_config": config("deepseek-ai/DeepSeek-V3", num_hidden_layers=8),
        "tensor_parallel_size": 4,
        "nodes": (machine,),
    }
    shared = {
        "decode_context_parallel_size": 4,
        "enable_expert_parallel": True,
        "enable_eplb": True,
        "num_redundant_experts": 4,
        "mm_encoder_tp_mode": "data",
    }
    plain, asked = [await house.planning.plan(_request(**moe, **more)) for more in ({}, shared)]

    assert asked.kv_cache_tokens > 3 * plain.kv_cache_tokens
    assert (
        '--enable-expert-parallel --enable-eplb --eplb-config {"num_redundant_experts": 4} '
        "--decode-context-parallel-size 4 --mm-encoder-tp-mode data"
    ) in " ".join(asked.vllm_args)


async def test_what_the_engine_refuses_of_it_is_refused(house: House):
    refused = await house.planning.plan(_request(decode_context_parallel_size=2))

    assert (refused.fits, refused.missing) == (False, "tp_size=1 must be divisible by dcp_size=2.")
    assert [change.option for change in refused.changes] == ["decode_context_parallel_size"]
    moved = await house.planning.plan(_request(enable_eplb=True))
    assert moved.missing == "enable_expert_parallel must be True to use EPLB."
    assert [change.option for change in moved.changes] == ["enable_eplb"]
    drafts = await house.planning.plan(_request(speculative_config={"method": "mtp", "num_speculative_tokens": 1}))
    assert drafts.missing == "Unsupported speculative method: 'mtp'"
    assert [(change.option, change.value) for change in drafts.changes] == [("speculative_config", "")]
    with pytest.raises(Malformed, match=r"data_parallel_size must be 1: .* Ask for replicas"):
        await house.planning.plan(_request(data_parallel_size=2))
