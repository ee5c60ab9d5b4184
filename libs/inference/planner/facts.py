"""What is to be known of a model before its memory can be counted."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class Certainty(StrEnum):
    """How well an architecture is known."""

    EXACT = "exact"
    LOW = "low"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Attention with heads of keys and values: at most `window` tokens back, or in chunks of `chunk` tokens, or all.

    `shared`: it has queries only, and reads the cache of a layer before it.
    """

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    window: int | None = None
    chunk: int | None = None
    query_key_norm: bool = False
    input_bias: bool = False
    output_bias: bool = False
    output_gate: bool = False
    values_are_keys: bool = False
    sinks: bool = False
    shared: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention:
    """Attention over one compressed latent per token (MLA), with an indexer where `index_heads` is not zero."""

    heads: int
    query_rank: int
    latent_rank: int
    rope_dim: int
    plain_dim: int
    value_dim: int
    index_heads: int = 0
    index_dim: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaAttention:
    """Gated linear attention (Qwen3-Next and after): a constant state per sequence instead of keys and values.

    With a `gate_rank` every channel of the keys has a gate of its own, by two narrow matrices (Kimi Linear).
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int
    state_bytes: int
    gate_rank: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSpace:
    """A Mamba-2 layer: a constant state per sequence."""

    heads: int
    head_dim: int
    groups: int
    state: int
    kernel: int
    state_bytes: int


Mixer = Attention | LatentAttention | DeltaAttention | StateSpace


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """A feed-forward block; `gated` ones have two input matrices."""

    intermediate: int
    gated: bool = True
    bias: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """Routed experts, of which each token uses `chosen`, beside shared ones that all tokens use.

    `latent` is the width that experts work in where it is not the model's; zero otherwise.
    """

    count: int
    chosen: int
    intermediate: int
    shared: int = 0
    shared_gate: bool = False
    gated: bool = True
    bias: bool = False
    latent: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """What a layer is made of. A layer may have a mixer, feed-forward blocks, or both."""

    mixer: Mixer | None
    feed_forward: tuple[Dense | Experts, ...] = ()
    norms: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerInputs:
    """What every layer adds to its states from tables of its own: `words` rows of `width` numbers for each layer.

    `streams` are the copies of the hidden state that layers work on in turn (AltUp), `narrow` the rank of a second way
    past attention (LAuReL); both are Gemma 3n's.
    """

    words: int
    width: int
    streams: int = 1
    narrow: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Vision:
    """The image encoder; `intermediate` counts its block's matrices by `gated`."""

    hidden: int
    depth: int
    intermediate: int
    heads: int
    gated: bool
    patch_values: int
    merged: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantisation:
    """How weights are stored. `bits` per weight; one scale of `scale_bits` per `group` inputs, or per `block`.

    `skipped` are vLLM's patterns of modules that stay as they were. Where modules are stored in several ways, `named`
    lists each with its own; what is not in it stays as it was.
    """

    method: str
    bits: int
    block: tuple[int, int] | None = None
    group: int = 0
    scale_bits: int = 0
    zero_points: bool = False
    skipped: tuple[str, ...] = ()
    experts_only: bool = False
    named: tuple[tuple[str, "Quantisation"], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapters:
    """LoRA adapters that room is kept for: so many at once, of this rank at most."""

    count: int
    rank: int


class DraftMethod(StrEnum):
    """What guesses the next tokens: words seen before, layers of the model itself, another model, or a head on it."""

    NGRAM = "ngram"
    MTP = "mtp"
    DRAFT_MODEL = "draft_model"
    EAGLE = "eagle"
    EAGLE3 = "eagle3"


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """How tokens are guessed ahead, `tokens` in each step. `model` is the other model or the head, where there is one.

    `asked_tensor` is the division a user names for it. `aux_inputs` is the width of the states that a head of EAGLE 3
    is fed, `head_words` how many words its output layer has. `own_words`: it has an embedding of its own.
    """

    method: DraftMethod
    tokens: int
    model: "ModelFacts | None" = None
    asked_tensor: int | None = None
    aux_inputs: int = 0
    own_words: bool = False
    head_words: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """A model, as its configuration tells it. `type_bytes` is the size of an unquantised weight.

    `max_position` was found in `length_field`. `scales` say by what part of a model how much larger its files are than
    computed, `beside` how many bytes they hold that are not counted otherwise. `cache_type` is what the cache is kept
    in where nobody asks otherwise; empty: as weights are that are not quantised. `draft_layers` are those with which it
    can guess ahead itself: they are not among its layers, and not loaded unless `draft` wants them.
    """

    architecture: str
    hidden: int
    vocabulary: int
    layers: Sequence[Layer]
    tied: bool
    max_position: int
    type_bytes: int
    rope_dim: int
    quantisation: Quantisation | None = None
    vision: Vision | None = None
    draft_layers: int = 0
    pipeline: bool = True
    certainty: Certainty = Certainty.EXACT
    doubts: tuple[str, ...] = field(default=())
    scales: tuple[tuple[str, float], ...] = ()
    beside: int = 0
    cache_type: str = ""
    adapters: Adapters | None = None
    draft: Draft | None = None
    layer_inputs: LayerInputs | None = None
    length_field: str = "max_position_embeddings"

    @property
    def heads(self) -> int:
        """Attention heads, as vLLM asks a configuration for them; zero without any attention."""
        return max((mixer.heads for mixer in self.mixers if isinstance(mixer, (Attention, LatentAttention))), default=0)

    @property
    def mixers(self) -> list[Mixer]:
        return [layer.mixer for layer in self.layers if layer.mixer is not None]

    @property
    def experts(self) -> list[Experts]:
        return [block for layer in self.layers for block in layer.feed_forward if isinstance(block, Experts)]
