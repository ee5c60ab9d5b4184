"""Bytes of cache per block, and how many tokens a number of bytes holds, by vLLM's rules for pages and groups.

Source: `v1/kv_cache_interface.py`, `v1/core/kv_cache_utils.py` and `v1/core/kv_cache_planning.py`.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from libs.common.errors import Malformed
from libs.inference.planner.drafts import draft_tokens, drafting_layers, drafting_model
from libs.inference.planner.facts import (
    Attention,
    DeltaAttention,
    LatentAttention,
    Layer,
    Mixer,
    ModelFacts,
    StateSpace,
)
from libs.inference.planner.fields import Unsupported
from libs.inference.planner.split import Parallel, stage_ranges

BLOCK_TOKENS = 16
"""Source: `config/cache.py` (`DEFAULT_BLOCK_SIZE`)."""

INDEX_BYTES_PER_SCALE, INDEX_SCALE_BYTES = 128, 4
PACKED_LATENT_BYTES = 656
"""One token of latent attention with an indexer and an FP8 cache (`fp8_ds_mla`)."""

ELEMENT_BYTES: Mapping[str, int] = {
    "auto": 0,
    "bfloat16": 2,
    "float16": 2,
    "fp8": 1,
    "fp8_e4m3": 1,
    "fp8_e5m2": 1,
    "fp8_ds_mla": 1,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a request may take: its longest length, the tokens that may be under way at once, and blocks per state."""

    max_model_len: int
    tokens_in_flight: int = 0
    state_blocks: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Layers that share a table of blocks. `page` is one layer's bytes of a block of `tokens` tokens.

    `sharers` ranks keep some tokens of each request each.
    """

    layers: int
    page: int
    tokens: int
    window: int | None = None
    chunk: int | None = None
    state: bool = False
    sharers: int = 1

    @property
    def keeps_all(self) -> bool:
        return self.window is None and self.chunk is None and not self.state

    def blocks(self, demand: Demand) -> int:
        """How many blocks one request of the longest length takes."""
        if self.state:
            return demand.state_blocks
        length = demand.max_model_len
        if self.window is not None:
            seen = min(self.window - 1 + demand.tokens_in_flight, length)
            return -(-seen // self.tokens) + 1
        if self.chunk is not None:
            length = min(self.chunk + demand.tokens_in_flight, length)
        return -(-length // (self.tokens * self.sharers))


@dataclass(frozen=True, slots=True, kw_only=True)
class KvLayout:
    """How the cache of one GPU is laid out. A block is a page for each layer of a group; groups share all blocks."""

    block_bytes: int
    groups: tuple[Group, ...]

    @property
    def is_hybrid(self) -> bool:
        return len(self.groups) > 1

    def blocks_in(self, size: int) -> int:
        return max(size, 0) // self.block_bytes if self.block_bytes else 0

    def request_blocks(self, demand: Demand) -> int:
        return sum(group.blocks(demand) for group in self.groups)

    def request_bytes(self, demand: Demand) -> int:
        """The cache that one request of the longest length needs, in bytes."""
        return self.request_blocks(demand) * self.block_bytes

    def concurrency(self, blocks: int, demand: Demand) -> float:
        """How many requests of the longest length fit at once."""
        needed = self.request_blocks(demand)
        return blocks / needed if needed else 0.0

    def tokens(self, blocks: int, demand: Demand) -> int:
        """What vLLM prints as "GPU KV cache size". Source: `kv_cache_utils.py` (`get_kv_cache_capacity`)."""
        return int(self.concurrency(blocks, demand) * demand.max_model_len)

    def tokens_before_0_21(self, blocks: int) -> int:
        """What vLLM printed before 0.21: the tokens of all blocks, shared by the groups."""
        first = self.groups[0] if self.groups else None
        return blocks * first.tokens * first.sharers // len(self.groups) if first else 0


def element_bytes(facts: ModelFacts, cache_type: str) -> int:
    """Bytes of one number in the cache. Raises `Malformed` for a type that is not known."""
    if cache_type not in ELEMENT_BYTES:
        raise Malformed(
            f"kv_cache_dtype must be one of {', '.join(ELEMENT_BYTES)}, not {cache_type!r}", field="kv_cache_dtype"
        )
    return ELEMENT_BYTES[cache_type] or facts.type_bytes


def token_bytes(facts: ModelFacts, mixer: Mixer, tensor: int, cache_type: str) -> int:
    """Bytes that one layer keeps per token on one GPU. Heads of keys are replicated when there are fewer than GPUs."""
    size = element_bytes(facts, cache_type)
    if isinstance(mixer, LatentAttention):
        return _latent_bytes(mixer, size)
    if isinstance(mixer, Attention):
        return max(1, -(-mixer.kv_heads // tensor)) * (mixer.head_dim + mixer.value_dim) * size
    return 0


def _latent_bytes(mixer: LatentAttention, size: int) -> int:
    latent = (mixer.latent_rank + mixer.rope_dim) * size
    if not mixer.index_heads:
        return latent
    index = mixer.index_dim + -(-mixer.index_dim // INDEX_BYTES_PER_SCALE) * INDEX_SCALE_BYTES
    return (PACKED_LATENT_BYTES if size == 1 else latent) + index


def state_bytes(facts: ModelFacts, mixer: DeltaAttention | StateSpace, tensor: int) -> int:
    """Bytes that one layer keeps per sequence on one GPU. Convolutions also keep what is guessed ahead.

    Source: `model_executor/layers/mamba/mamba_utils.py` (`MambaStateShapeCalculator`).
    """
    if isinstance(mixer, DeltaAttention):
        mixed = 2 * mixer.key_heads * mixer.key_dim + mixer.value_heads * mixer.value_dim
        inner = mixer.value_heads * mixer.key_dim * mixer.value_dim
    else:
        groups = mixer.groups if mixer.groups % tensor == 0 else tensor
        mixed = mixer.heads * mixer.head_dim + 2 * groups * mixer.state
        inner = mixer.heads * mixer.head_dim * mixer.state
    convolution = (mixer.kernel - 1 + draft_tokens(facts)) * -(-mixed // tensor) * facts.type_bytes
    return convolution + -(-inner // tensor) * mixer.state_bytes


def kv_layout(
    facts: ModelFacts,
    parallel: Parallel,
    *,
    stage: int = 0,
    cache_type: str = "auto",
    block_tokens: int = BLOCK_TOKENS,
    hybrid: bool = True,
) -> KvLayout:
    """The layout on each GPU of a stage. Without `hybrid` every layer keeps all tokens.

    Raises `Malformed` for an unknown type, `Unsupported` where pages of different sizes cannot share blocks.
    """
    kinds = layer_kinds(facts, parallel, cache_type=cache_type, block_tokens=block_tokens, hybrid=hybrid)
    return layout_of(held_kinds(kinds, stage_ranges(len(facts.layers), parallel)[stage], len(facts.layers)))


def held_kinds(kinds: Sequence[Group | None], held: range, layers: int) -> Sequence[Group | None]:
    """Of a stage that holds some layers; the last one holds those of drafts, too, which come after all others."""
    return kinds[held.start :] if held.stop == layers else kinds[held.start : held.stop]


def layer_kinds(
    facts: ModelFacts,
    parallel: Parallel,
    *,
    cache_type: str = "auto",
    block_tokens: int = BLOCK_TOKENS,
    hybrid: bool = True,
) -> list[Group | None]:
    """What each layer keeps, as a group of one; None for a layer that keeps nothing. Those of drafts come last."""

    def kinds(model: ModelFacts, layers: Sequence[Layer]) -> list[Group | None]:
        made: dict[Mixer, Group | None] = {}
        for mixer in {layer.mixer: None for layer in layers}:
            if mixer is not None:
                shared = isinstance(mixer, Attention) and mixer.shared
                made[mixer] = None if shared else _kind(model, mixer, parallel, cache_type, block_tokens, hybrid)
        return [None if layer.mixer is None else made[layer.mixer] for layer in layers]

    drafts = kinds(drafting_model(facts), drafting_layers(facts))
    return kinds(facts, facts.layers) + [replace(kind, sharers=1) if kind else None for kind in drafts]


def layout_of(layers: Iterable[Group | None]) -> KvLayout:
    """The layout of layers that are on one GPU. Raises `Unsupported`.

    Layers that all keep every token share blocks whatever their pages are. Source: `v1/kv_cache_interface.py`
    (`UniformTypeKVCacheSpecs`).
    """
    found = Counter(kind for kind in layers if kind is not None)
    if all(kind.keeps_all for kind in found) and len({kind.sharers for kind in found}) <= 1:
        size = sum(kind.page * count for kind, count in found.items())
        groups = [replace(max(found, key=lambda kind: kind.page), layers=found.total())] if found else []
        return KvLayout(block_bytes=size, groups=tuple(groups))
    kinds = _with_common_page(found)
    if len(kinds) <= 1:
        groups = [replace(kind, layers=count) for kind, count in kinds.items()]
        return KvLayout(block_bytes=sum(group.page * group.layers for group in groups), groups=tuple(groups))
    return _grouped(kinds)


def _kind(facts: ModelFacts, mixer: Mixer, parallel: Parallel, cache_type: str, tokens: int, hybrid: bool) -> Group:
    """A group of one layer, before it is known how many there are.

    Ranks share the tokens of what keeps all of them. Source: `v1/kv_cache_interface.py` (`FullAttentionSpec`).
    """
    if isinstance(mixer, (DeltaAttention, StateSpace)):
        return Group(layers=1, page=state_bytes(facts, mixer, parallel.tensor), tokens=tokens, state=True)
    page = token_bytes(facts, mixer, parallel.tensor, cache_type) * tokens
    limited = mixer if isinstance(mixer, Attention) and hybrid else None
    return Group(
        layers=1,
        page=page,
        tokens=tokens,
        window=limited.window if limited else None,
        chunk=limited.chunk if limited else None,
        sharers=parallel.manner.context if limited is None or not _is_limited(limited) else 1,
    )


def _is_limited(mixer: Attention) -> bool:
    return mixer.window is not None or mixer.chunk is not None


def _with_common_page(kinds: Counter[Group]) -> Counter[Group]:
    """Attention blocks grow until one holds a state, and small pages until they are as large as the largest.

    Source: `model_executor/models/config.py` (`HybridAttentionMambaModelConfig`), `kv_cache_utils.py`
    (`unify_kv_cache_spec_page_size`).
    """
    state = max((kind.page for kind in kinds if kind.state), default=0)
    attention = [kind for kind in kinds if not kind.state]
    if not attention or len(kinds) == 1:
        return kinds
    largest = max(kind.page for kind in attention)
    factor = max(1, -(-state // largest))
    return Counter({_paged(kind, largest * factor): count for kind, count in kinds.items()})


def _paged(kind: Group, page: int) -> Group:
    if kind.state:
        return replace(kind, page=page)
    if page % kind.page:
        raise Unsupported(f"head_dim: pages of {kind.page} and {page} bytes cannot share blocks", field="head_dim")
    return replace(kind, page=page, tokens=kind.tokens * page // kind.page)


def _grouped(kinds: Counter[Group]) -> KvLayout:
    """Groups of equal size; what does not fill its last group is padded, and the padding wasted.

    Source: `kv_cache_utils.py` (`_get_kv_cache_groups_uniform_page_size`).
    """
    size = group_size(list(kinds.values()))
    groups = [replace(kind, layers=size) for kind, count in kinds.items() for _ in range(-(-count // size))]
    groups.sort(key=lambda group: (group.state, group.window is not None, group.chunk is not None))
    return KvLayout(block_bytes=size * groups[0].page, groups=tuple(groups))


def group_size(counts: Sequence[int]) -> int:
    """The layers of a group: the smallest count, or the largest where that is less than half as much again."""
    least, most = min(counts), max(counts)
    return most if most < 1.5 * least else least
