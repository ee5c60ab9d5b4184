"""What is told of engines over the whole mesh, and how it is planned which are started where."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from libs.common.contracts.base import Identifier, JsonObject, Message
from libs.common.contracts.node_registry import Engine, GpuLink

MOST_BYTES = 2**53
MOST_NODES, MOST_GPUS = 1000, 64
Bytes = Annotated[int, Field(ge=0, le=MOST_BYTES)]
Revision = Annotated[str, Field(pattern=r"^[A-Za-z0-9._/-]{1,128}$")]
ModelName = Annotated[str, Field(min_length=1, max_length=256, examples=["Qwen/Qwen3-8B"])]


class PlacedEngine(Message):
    """An engine and the node it is on. `engine.url` is as that node itself reaches it."""

    node_id: str
    engine: Engine
    free_slots: int = Field(description="of the whole node")
    draining: bool
    heard_seconds_ago: float = Field(ge=0)


class PlacedEngines(Message):
    engines: tuple[PlacedEngine, ...]


class ServedModel(Message):
    """A model and where it is served."""

    model_name: str
    test_model: bool
    ready: int = Field(description="engines that would take a request now")
    slots: int = Field(description="requests that those serve at once, together")
    node_ids: tuple[str, ...]


class ServedModels(Message):
    models: tuple[ServedModel, ...]


class Preference(StrEnum):
    LATENCY = "latency"
    THROUGHPUT = "throughput"
    FEWEST_GPUS = "fewest_gpus"


class Device(StrEnum):
    GPU = "gpu"
    CPU = "cpu"


class ExecutorBackend(StrEnum):
    """What starts the ranks of an engine and lets them talk. `mp`: vLLM's own processes."""

    MP = "mp"
    RAY = "ray"


class PlanGpu(Message):
    """A GPU to plan with. `index` is its place in the order of the PCI bus; left out: its place in the list."""

    uuid: Identifier
    name: str = Field("", max_length=128)
    total_bytes: Annotated[int, Field(ge=1, le=MOST_BYTES)]
    free_bytes: Bytes | None = Field(None, description="left out: all of it")
    compute_capability: Annotated[str, Field(pattern=r"^\d{1,2}\.\d$")] | None = Field(None, examples=["9.0"])
    index: Annotated[int, Field(ge=0, le=1024)] | None = None

    @model_validator(mode="after")
    def _is_possible(self) -> "PlanGpu":
        if self.free_bytes is not None and self.free_bytes > self.total_bytes:
            raise ValueError(f"free_bytes of {self.uuid} is more than its total_bytes")
        return self


class PlanNode(Message):
    """A machine to plan with. GPUs are connected by NVLink where a link between them says so."""

    node_id: Identifier
    gpus: tuple[PlanGpu, ...] = Field((), max_length=MOST_GPUS)
    links: tuple[GpuLink, ...] = Field((), max_length=MOST_GPUS * MOST_GPUS)
    ram_free_bytes: Bytes = Field(0, description="for an engine on the processor")
    cpu_threads: Annotated[int, Field(ge=0, le=65536)] = 0
    address: Annotated[str, Field(max_length=256)] = Field("", description="where other nodes reach it")
    interface: Annotated[str, Field(max_length=64)] = Field("", description="the network interface of that address")


class SpeculativeConfig(Message):
    """Tokens that are guessed ahead, in the words of vLLM's option of this name. Without a `method` it is found by the
    model's name, as vLLM does."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    method: Literal["ngram", "mtp", "draft_model", "eagle", "eagle3"] | None = None
    model: ModelName | None = Field(None, description="the other model, or the head of EAGLE; mtp and ngram have none")
    revision: Revision | None = None
    configuration: JsonObject | None = Field(
        None, alias="model_config", description="the config.json of that model, instead of reading it"
    )
    num_speculative_tokens: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None, description="in each step; left out with mtp: as many as the model has layers for that"
    )
    draft_tensor_parallel_size: Annotated[int, Field(ge=1, le=1024)] | None = None
    prompt_lookup_min: Annotated[int, Field(ge=1, le=2**20)] | None = Field(None, description="with ngram")
    prompt_lookup_max: Annotated[int, Field(ge=1, le=2**20)] | None = Field(None, description="with ngram")

    @model_validator(mode="after")
    def _is_whole(self) -> "SpeculativeConfig":
        if self.method in ("draft_model", "eagle", "eagle3") and self.model is None:
            raise ValueError(f"model is wanted with the method {self.method}")
        if self.method in ("ngram", "mtp") and (self.model or self.configuration):
            raise ValueError(f"model is not for the method {self.method}")
        if self.method is None and self.model is None:
            raise ValueError("method or model is wanted")
        self._looks_up()
        return self

    def _looks_up(self) -> None:
        least, most = self.prompt_lookup_min, self.prompt_lookup_max
        if (least or most) and self.method != "ngram":
            raise ValueError("prompt_lookup_min and prompt_lookup_max are for the method ngram")
        if least and most and least > most:
            raise ValueError(f"prompt_lookup_min={least} must be <= prompt_lookup_max={most}")


class PlanOptions(Message):
    """What is wanted of an engine. What is left out is chosen, and the answer says what was."""

    max_model_len: Annotated[int, Field(ge=1, le=2**31)] | None = Field(
        None, description="left out: the longest that the model knows"
    )
    concurrency: Annotated[float, Field(ge=1, le=1_000_000)] = Field(
        1.0, description="requests of the longest length at once, over all replicas"
    )
    tokens_per_second: Annotated[float, Field(gt=0, le=1e9)] | None = Field(
        None, description="of all requests together; estimated from memory bandwidth"
    )
    prefer: Preference | None = None
    replicas: Annotated[int, Field(ge=1, le=1000)] | None = Field(None, description="left out: as many as it takes")
    device: Device | None = Field(None, description="left out: a processor only where there is no GPU")
    dtype: Annotated[str, Field(max_length=32)] | None = None
    quantization: Annotated[str, Field(max_length=32)] | None = None
    tensor_parallel_size: Annotated[int, Field(ge=1, le=1024)] | None = None
    pipeline_parallel_size: Annotated[int, Field(ge=1, le=1024)] | None = None
    data_parallel_size: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None, description="1: an engine that is to serve more is asked for with replicas"
    )
    decode_context_parallel_size: Annotated[int, Field(ge=1, le=1024)] = Field(
        1, description="ranks that share the tokens of each request's cache, where heads of keys would be replicated"
    )
    enable_expert_parallel: bool = Field(False, description="keep experts whole; chosen where only that is divisible")
    enable_eplb: bool = Field(False, description="move experts to where they are wanted; needs expert parallelism")
    num_redundant_experts: Annotated[int, Field(ge=0, le=65536)] = Field(0, description="with enable_eplb")
    mm_encoder_tp_mode: Literal["weights", "data"] = Field(
        "weights", description="data: the whole image encoder on every rank"
    )
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    max_num_seqs: Annotated[int, Field(ge=1, le=2**20)] | None = None
    max_num_batched_tokens: Annotated[int, Field(ge=1, le=2**24)] | None = None
    kv_cache_dtype: Annotated[str, Field(max_length=32)] = "auto"
    enforce_eager: bool = False
    max_loras: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None, description="LoRA adapters at once that room is kept for; left out: none"
    )
    max_lora_rank: Literal[1, 8, 16, 32, 64, 128, 256, 320, 512] = Field(16, description="of those adapters, at most")
    speculative_config: SpeculativeConfig | None = Field(
        None,
        description="tokens guessed ahead; left out: none",
        examples=[{"method": "ngram", "num_speculative_tokens": 5}],
    )
    vllm_version: Annotated[str, Field(max_length=32)] | None = Field(None, examples=["0.33.0"])
    distributed_executor_backend: ExecutorBackend = Field(
        ExecutorBackend.MP,
        description="ray: over a Ray cluster of the engine's own, which begins and ends with it; not on processors",
    )


class PlanRequest(PlanOptions):
    """A model by its name or its configuration, the machines, and what is wanted. Nothing is reserved or started."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    model_name: ModelName | None = Field(None, description="of a hub, or a folder of models here")
    revision: Revision | None = None
    configuration: JsonObject | None = Field(
        None, alias="model_config", description="the model's config.json, instead of its name"
    )
    gguf_file: Annotated[str, Field(max_length=256)] | None = Field(
        None,
        examples=["Qwen3-8B-Q4_K_M.gguf"],
        description="plan llama.cpp on a processor with this file of the model, instead of vLLM",
    )
    weights_bytes: Annotated[int, Field(ge=1, le=MOST_BYTES)] | None = Field(None, description="of all its files")
    parameter_count: Annotated[int, Field(ge=1, le=MOST_BYTES)] | None = None
    nodes: tuple[PlanNode, ...] | None = Field(
        None, max_length=MOST_NODES, description="left out: the machines that the registry knows to be online"
    )

    @model_validator(mode="after")
    def _is_whole(self) -> "PlanRequest":
        self._asks_for_something()
        if self.weights_bytes is not None and self.parameter_count is not None:
            raise ValueError("weights_bytes and parameter_count exclude each other")
        ids = [node.node_id for node in self.nodes or ()]
        if len(set(ids)) != len(ids):
            raise ValueError("nodes names a node_id twice")
        uuids = [gpu.uuid for node in self.nodes or () for gpu in node.gpus]
        if len(set(uuids)) != len(uuids):
            raise ValueError("nodes names a GPU's uuid twice")
        return self

    def _asks_for_something(self) -> None:
        if self.model_name is None and self.configuration is None:
            raise ValueError("model_name or model_config is wanted")


class PlannedMemory(Message):
    """What becomes of one GPU's memory. `budget_bytes` is what the engine may take, and the sum of the terms below."""

    gpu_uuid: str
    node_id: str
    replica: int = Field(0, ge=0)
    stage: int = Field(0, ge=0)
    rank: int = Field(0, ge=0)
    total_bytes: int
    free_bytes: int
    budget_bytes: int
    weights_bytes: int
    kv_cache_bytes: int
    activation_bytes: int
    cuda_graph_bytes: int
    non_torch_bytes: int


class PlannedCommand(Message):
    """What to start on one node: `vllm serve` with these arguments, and with this added to the environment.

    Over Ray `ray` with `ray_args` runs before, on every node, and `vllm serve` on the first alone, as soon as the
    cluster is whole; the others have no `vllm_args`."""

    node_id: str
    replica: int = Field(0, ge=0)
    vllm_args: tuple[str, ...]
    environment: dict[str, str]
    ray_args: tuple[str, ...] = ()


class RefusedDivision(Message):
    """A division that was looked at and not taken. `message` is vLLM's own where vLLM would say one."""

    strategy: str
    tensor_parallel_size: int
    pipeline_parallel_size: int
    code: str
    message: str


class NearestChange(Message):
    """With this changed it would fit. `value` is empty where the option is to be left out."""

    option: str
    value: str
    message: str


class PlanAnswer(Message):
    """What to start, and why. Where nothing fits, `missing` says what is lacking and `changes` what would help."""

    fits: bool
    model_name: str | None = None
    strategy: str | None = Field(
        None, description="SINGLE_GPU, TENSOR_PARALLEL, PIPELINE_PARALLEL, HYBRID_TP_PP or CPU"
    )
    tensor_parallel_size: int | None = None
    pipeline_parallel_size: int | None = None
    layers_per_stage: tuple[int, ...] = ()
    replicas: int = 0
    gpu_memory_utilization: float | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    memory_per_gpu: tuple[PlannedMemory, ...] = ()
    ram_bytes: int = Field(0, description="of an engine on processors, on each of its machines")
    kv_cache_tokens: int = Field(0, description="of one replica")
    max_concurrency: float = Field(0.0, description="requests of the longest length at once, of one replica")
    estimated_tokens_per_second: float | None = Field(None, description="of one replica, by memory bandwidth alone")
    vllm_args: tuple[str, ...] = Field((), description="after `vllm serve`, on the first node of the first replica")
    environment: dict[str, str] = {}
    commands: tuple[PlannedCommand, ...] = Field((), description="of every node of every replica")
    reasons: tuple[str, ...] = ()
    refused: tuple[RefusedDivision, ...] = ()
    missing: str = ""
    changes: tuple[NearestChange, ...] = ()
    confidence: str = Field("high", description="high, medium or low")
    vllm_version: str = ""


class Strategy(Message):
    name: str
    summary: str


class Strategies(Message):
    strategies: tuple[Strategy, ...]
    preferences: tuple[Strategy, ...]


class FittingModel(Message):
    """A model of the catalogue, and whether it fits the machines that are online now."""

    model_name: str
    parameters: int | None = None
    fits: bool
    strategy: str | None = None
    gpus: int = 0
    max_model_len: int | None = None
    max_concurrency: float = 0.0
    reason: str = Field("", description="why it does not fit, or cannot be told")


class FittingModels(Message):
    models: tuple[FittingModel, ...]
