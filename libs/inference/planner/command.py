"""The command line of `vllm serve` and the environment, node by node."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from libs.inference.planner.attempt import Instance
from libs.inference.planner.devices import Gpu, Node
from libs.inference.planner.facts import Adapters
from libs.inference.planner.split import Parallel

MASTER_PORT = 29501
RAY_PORT = 6379
RAY_STORE_BYTES = 512 * 2**20
"""Room for what Ray's processes hand each other: vLLM hands on little there. Ray takes 30 % of the RAM by itself."""
READY_SECONDS, READY_BYTES_PER_SECOND = 600, 200 * 10**6
"""The engine's default patience, and how slowly weights may be read before it is raised."""


class Backend(StrEnum):
    """How the ranks of an engine are started and talk: by vLLM itself, or over a Ray cluster."""

    MP = "mp"
    RAY = "ray"


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """What the command line says of the model itself. `served_name` is what clients call it, where that differs.

    `drafts` is vLLM's `--speculative-config`.
    """

    model_name: str
    served_name: str | None = None
    revision: str | None = None
    dtype: str | None = None
    quantization: str | None = None
    adapters: Adapters | None = None
    drafts: Mapping[str, object] | None = None
    backend: Backend = Backend.MP


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCommand:
    """What to start on one node: the arguments after `vllm serve`, and the environment to add.

    `ray` are those after `ray`, which is started before; where that is all there is, `arguments` is empty.
    """

    node_id: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    ray: tuple[str, ...] = ()


def node_commands(instance: Instance, naming: Naming, nodes: Mapping[str, Node]) -> tuple[NodeCommand, ...]:
    """One command per node, that of the head first.

    Source: vLLM's `docs/serving/parallelism_scaling.md`: without Ray every node runs the same command with its own
    rank, and all but the first without a door.
    """
    ids = instance.seats.node_ids
    found = []
    for rank, node_id in enumerate(ids):
        here = [gpu for gpu in instance.seats.gpus if gpu.node_id == node_id]
        environment = _environment(instance, here)
        if naming.backend is Backend.RAY:
            arguments = [] if rank else [*_arguments(instance, naming), "--distributed-executor-backend", "ray"]
            ray = ray_arguments(nodes[ids[0]], nodes[node_id], rank, len(here))
            environment |= network_environment(nodes[node_id]) | ray_environment(nodes[ids[0]])
        else:
            arguments = [*_arguments(instance, naming), *together_arguments([nodes[each] for each in ids], rank)]
            ray = ()
            environment |= network_environment(nodes[node_id]) if len(ids) > 1 else {}
        found.append(NodeCommand(node_id=node_id, arguments=tuple(arguments), environment=environment, ray=ray))
    return tuple(found)


def _arguments(instance: Instance, naming: Naming) -> list[str]:
    options, parallel = instance.options, instance.parallel
    found = model_arguments(naming)
    for name, value in (
        ("tensor-parallel-size", parallel.tensor),
        ("pipeline-parallel-size", parallel.pipeline),
        ("gpu-memory-utilization", f"{options.gpu_memory_utilization:g}"),
        ("max-model-len", options.max_model_len),
        ("max-num-seqs", options.max_num_seqs),
        ("max-num-batched-tokens", options.max_num_batched_tokens),
    ):
        found += [f"--{name}", str(value)]
    dtype = naming.dtype or ("half" if _wants_half(instance) else None)
    found += ["--dtype", dtype] if dtype is not None else []
    if options.kv_cache_dtype != "auto":
        found += ["--kv-cache-dtype", options.kv_cache_dtype]
    found += ["--enforce-eager"] if options.enforce_eager else []
    return found + shared_arguments(parallel)


def shared_arguments(parallel: Parallel) -> list[str]:
    """How ranks share what could be shared in several ways."""
    manner = parallel.manner
    found = ["--enable-expert-parallel"] if parallel.expert_parallel else []
    found += ["--enable-eplb"] if manner.balanced else []
    if manner.redundant:
        found += ["--eplb-config", json.dumps({"num_redundant_experts": manner.redundant})]
    if manner.context > 1:
        found += ["--decode-context-parallel-size", str(manner.context)]
    return found + (["--mm-encoder-tp-mode", "data"] if manner.whole_encoder else [])


def model_arguments(naming: Naming) -> list[str]:
    found = [naming.model_name]
    for name, text in (
        ("served-model-name", naming.served_name),
        ("revision", naming.revision),
        ("quantization", naming.quantization),
    ):
        found += [f"--{name}", text] if text is not None else []
    if naming.adapters is not None:
        found += ["--enable-lora", "--max-loras", str(naming.adapters.count)]
        found += ["--max-lora-rank", str(naming.adapters.rank)]
    if naming.drafts is not None:
        found += ["--speculative-config", json.dumps(naming.drafts)]
    return found


def _wants_half(instance: Instance) -> bool:
    """GPUs before compute capability 8.0 have no bfloat16; vLLM then falls back to it, here it is said."""
    return any(gpu.capability is not None and gpu.capability < (8, 0) for gpu in instance.seats.gpus)


def together_arguments(nodes: Sequence[Node], rank: int) -> list[str]:
    """How the node with a rank finds the others, of which the first is the head; nothing where it is alone."""
    if len(nodes) == 1:
        return []
    head = nodes[0]
    found = ["--nnodes", str(len(nodes)), "--node-rank", str(rank)]
    found += ["--master-addr", _address(head), "--master-port", str(MASTER_PORT)]
    return found + (["--headless"] if rank else [])


def ray_arguments(head: Node, node: Node, rank: int, gpus: int) -> tuple[str, ...]:
    """How a node begins a Ray cluster or joins that of the head.

    Workers get any free ports. One processor: Ray begins as many idle workers as it is told of, and vLLM's ranks ask
    for GPUs alone. `--block` keeps what Ray starts below the process that started it.
    """
    own = ["--node-ip-address", _address(node), "--num-gpus", str(gpus), "--num-cpus", "1"]
    own += [
        "--min-worker-port",
        "0",
        "--max-worker-port",
        "0",
        "--object-store-memory",
        str(RAY_STORE_BYTES),
        "--block",
    ]
    if rank:
        return ("start", "--address", f"{_address(head)}:{RAY_PORT}", *own)
    return ("start", "--head", "--port", str(RAY_PORT), "--include-dashboard", "false", "--disable-usage-stats", *own)


def ray_environment(head: Node) -> dict[str, str]:
    """Where the cluster is, so that nobody takes another one that runs on the machine."""
    return {"RAY_ADDRESS": f"{_address(head)}:{RAY_PORT}"}


def _address(node: Node) -> str:
    return node.address or node.node_id


def _environment(instance: Instance, here: Sequence[Gpu]) -> dict[str, str]:
    """GPUs by their place on the PCI bus: vLLM reads numbers here, and not every version understands UUIDs. A MIG
    device has nothing but its UUID."""
    found = {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": ",".join(gpu.uuid if gpu.is_part else str(gpu.index) for gpu in here),
    }
    if instance.parallel.partition:
        found["VLLM_PP_LAYER_PARTITION"] = ",".join(map(str, instance.parallel.partition))
    slowest = max(need.weights for need in instance.start.needs) * instance.parallel.tensor / READY_BYTES_PER_SECOND
    if slowest > READY_SECONDS:
        found["VLLM_ENGINE_READY_TIMEOUT_S"] = str(int(slowest))
    return found


def network_environment(node: Node) -> dict[str, str]:
    """Which of its addresses a node is to use."""
    found = {"VLLM_HOST_IP": node.address} if node.address else {}
    if node.interface:
        found |= {"NCCL_SOCKET_IFNAME": node.interface, "GLOO_SOCKET_IFNAME": node.interface}
    return found
