"""What llama.cpp takes of a machine's RAM with a GGUF file."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from libs.common.errors import Malformed
from libs.inference.planner.devices import Node
from libs.inference.planner.fields import Fields
from libs.inference.planner.gguf import GgufHeader, LongList
from libs.inference.planner.memory import GIB

MIB = 2**20
PROGRAM_BYTES = 128 * MIB
"""Python, the library and the server's threads. A server of 4 slots holds 60 MiB of its own."""

CACHE_TYPE_BYTES = 2
"""Keys and values are kept in 16 bits unless asked otherwise."""

CELLS = 256
"""A slot's cells are rounded up to so many. Source: `llama-context.cpp` (`GGML_PAD(n_ctx_seq, 256)`)."""

STEP_TOKENS = 512
"""Tokens of one pass. Source: `common.h` (`n_ubatch`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufFacts:
    """A model as its GGUF file tells it. `cell_bytes` is what a token takes of the cache, in all layers;
    `state_bytes` what each slot takes beside that, of layers that keep a constant state."""

    architecture: str
    layers: int
    hidden: int
    vocabulary: int
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    key_dim: int
    value_dim: int
    max_position: int
    experts: int
    experts_chosen: int
    quantisation: str
    weight_bytes: int
    cell_bytes: int
    state_bytes: int
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaNeed:
    """Bytes of RAM. `compute` is an upper bound; the others are exact for a model without doubts."""

    weights: int
    kv_cache: int
    compute: int
    program: int = PROGRAM_BYTES

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.compute + self.program


def gguf_facts(header: GgufHeader) -> GgufFacts:
    """Raises `Malformed` naming the field that is missing or wrong."""
    metadata = header.metadata
    architecture = Fields(metadata).text("general.architecture")
    fields = Fields({name.removeprefix(f"{architecture}."): value for name, value in metadata.items()})
    layers = fields.count("block_count", least=1)
    hidden = fields.count("embedding_length", least=1)
    heads = _per_layer(fields, "attention.head_count", layers)
    kv_heads = _per_layer(fields, "attention.head_count_kv", layers, heads)
    width = hidden // max(1, *heads)
    key_dim = fields.count("attention.key_length", default=width)
    value_dim = fields.count("attention.value_length", default=width)
    state = _state_bytes(fields) * sum(count == 0 for count in kv_heads)
    return GgufFacts(
        architecture=architecture,
        layers=layers,
        hidden=hidden,
        vocabulary=_vocabulary(fields, header),
        heads=heads,
        kv_heads=kv_heads,
        key_dim=key_dim,
        value_dim=value_dim,
        max_position=fields.count("context_length", least=1),
        experts=fields.count("expert_count", default=0),
        experts_chosen=fields.count("expert_used_count", default=0),
        quantisation=_commonest(header),
        weight_bytes=header.weight_bytes,
        cell_bytes=sum(kv_heads) * (key_dim + value_dim) * CACHE_TYPE_BYTES,
        state_bytes=state,
        doubts=tuple(_doubts(fields, stateless=not state and not all(kv_heads))),
    )


def llama_need(facts: GgufFacts, *, context: int, slots: int) -> LlamaNeed:
    """With so many tokens for each of so many slots.

    Source of the cache: `llama-kv-cache.cpp`; every slot has cells of its own. Of the step: the scores of all words for
    every token of a pass, and the states between two layers, as `llama-context.cpp` reserves them.
    """
    cells = -(-context // CELLS) * CELLS
    step = STEP_TOKENS * (facts.vocabulary + 4 * facts.hidden) * 4
    return LlamaNeed(
        weights=facts.weight_bytes,
        kv_cache=slots * (cells * facts.cell_bytes + facts.state_bytes),
        compute=step + slots * facts.vocabulary * 4,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaPlan:
    """One engine on a node's processor: so many tokens for each of its slots. Where it does not fit, `missing` says
    what is lacking, and the context and the slots beside it are those that would fit; None: none would."""

    node_id: str
    need: LlamaNeed
    context: int
    slots: int
    missing: str = ""
    context_that_fits: int | None = None
    slots_that_fit: int | None = None


def plan_llama(facts: GgufFacts, nodes: Sequence[Node], *, context: int | None, slots: int) -> LlamaPlan:
    """On the node with most free RAM; without a context the longest that the model knows and that fits."""
    node = max(nodes, key=lambda each: (each.ram, each.node_id))
    longest = _longest(facts, node.ram, slots)
    chosen = context or min(facts.max_position, longest or CELLS)
    need = llama_need(facts, context=chosen, slots=slots)
    plan = LlamaPlan(node_id=node.node_id, need=need, context=chosen, slots=slots)
    if need.total <= node.ram:
        return plan
    fewer = (
        count for count in range(slots - 1, 0, -1) if llama_need(facts, context=chosen, slots=count).total <= node.ram
    )
    text = (
        f"The model needs {need.total / GIB:.2f} GiB of RAM (weights {need.weights / GIB:.2f}, cache "
        f"{need.kv_cache / GIB:.2f}, a step {need.compute / GIB:.2f}), and {node.node_id} has {node.ram / GIB:.2f} GiB "
        "free."
    )
    return replace(plan, missing=text, context_that_fits=longest, slots_that_fit=next(fewer, None))


def _longest(facts: GgufFacts, ram: int, slots: int) -> int | None:
    """Tokens for each slot, in whole cells; None where not even the shortest context fits."""
    left = ram - llama_need(facts, context=0, slots=slots).total
    if not facts.cell_bytes:
        return facts.max_position if left >= 0 else None
    cells = left // (slots * facts.cell_bytes * CELLS)
    return min(facts.max_position, cells * CELLS) if cells > 0 else None


def _per_layer(fields: Fields, name: str, layers: int, default: Sequence[int] | None = None) -> tuple[int, ...]:
    """One figure for all layers, or one for each."""
    value = fields.values.get(name)
    if value is None and default is not None:
        return tuple(default)
    if isinstance(value, (tuple, LongList)):
        counts = fields.counts(name)
        if len(counts) != layers or min(counts) < 0:
            raise Malformed(f"{name} must have {layers} whole numbers, one for each block", field=name)
        return counts
    return (fields.count(name),) * layers


def _vocabulary(fields: Fields, header: GgufHeader) -> int:
    for tensor in header.tensors:
        if tensor.name in ("token_embd.weight", "output.weight") and len(tensor.shape) > 1:
            return tensor.shape[1]
    return fields.count("vocab_size", least=1)


def _commonest(header: GgufHeader) -> str:
    """The type that most bytes are of; a file mixes several."""
    sizes: dict[str, int] = {}
    for tensor in header.tensors:
        sizes[tensor.type] = sizes.get(tensor.type, 0) + tensor.size
    return max(sizes, key=lambda kind: sizes[kind], default="")


def _state_bytes(fields: Fields) -> int:
    """Of one layer and slot, in 32 bits. Source: `llama-hparams.cpp` (`n_embd_r`, `n_embd_s`)."""
    if not fields.has("ssm.inner_size"):
        return 0
    inner, state = fields.count("ssm.inner_size"), fields.count("ssm.state_size")
    kernel, groups = fields.count("ssm.conv_kernel"), fields.count("ssm.group_count", default=0)
    return 4 * (max(0, kernel - 1) * (inner + 2 * groups * state) + state * inner)


def _doubts(fields: Fields, *, stateless: bool) -> list[str]:
    found = []
    if fields.count("attention.sliding_window", default=0):
        found.append("layers with a sliding window are counted as if they kept everything")
    if fields.has("attention.kv_lora_rank"):
        found.append("its compressed cache is counted with keys and values, of which some versions keep one")
    if stateless:
        found.append("some layers keep neither keys nor a state that is known here")
    return found
