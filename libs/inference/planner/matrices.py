"""The weights of a model one by one: shapes, and how vLLM divides each among tensor-parallel ranks."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from libs.inference.planner.facts import (
    Attention,
    DeltaAttention,
    Dense,
    Experts,
    LatentAttention,
    Layer,
    LayerInputs,
    Mixer,
    ModelFacts,
    StateSpace,
    Vision,
)


class Part(StrEnum):
    """What a weight is for."""

    EMBEDDING = "embedding"
    HEAD = "head"
    ATTENTION = "attention"
    INDEXER = "indexer"
    STATE = "state"
    DENSE = "dense"
    EXPERTS = "experts"
    SHARED_EXPERTS = "shared_experts"
    ROUTER = "router"
    NORMS = "norms"
    VISION = "vision"


class Split(StrEnum):
    """How tensor parallelism divides a weight."""

    OUTPUTS = "outputs"
    INPUTS = "inputs"
    KV_HEADS = "kv_heads"
    VOCABULARY = "vocabulary"
    REPLICATED = "replicated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """`copies` weights of `outputs` x `inputs`. `vectors` are further numbers beside each, such as its biases.

    `kv_heads` says how many heads `outputs` holds where those are what is divided. `linear` ones can be quantised.
    `merged` is how many matrices vLLM keeps as this one.
    """

    module: str
    part: Part
    outputs: int
    inputs: int
    split: Split
    copies: int = 1
    vectors: int = 0
    kv_heads: int = 0
    merged: int = 1
    linear: bool = True

    @property
    def parameters(self) -> int:
        return self.copies * (self.outputs * self.inputs + self.vectors)


def embedding(facts: ModelFacts) -> Matrix:
    return Matrix(
        module="embed_tokens",
        part=Part.EMBEDDING,
        outputs=facts.vocabulary,
        inputs=facts.hidden,
        split=Split.VOCABULARY,
        linear=False,
    )


def head(facts: ModelFacts) -> Matrix:
    """The output layer as vLLM keeps it on the last stage, also where it is tied to the embedding."""
    return Matrix(
        module="lm_head",
        part=Part.HEAD,
        outputs=facts.vocabulary,
        inputs=facts.hidden,
        split=Split.VOCABULARY,
    )


def final_norm(facts: ModelFacts) -> Matrix:
    return vector("norm", Part.NORMS, facts.hidden)


def layers_differ(facts: ModelFacts) -> bool:
    """Whether layers of the same shapes may be stored differently, because modules are named one by one."""
    kind = facts.quantisation
    return kind is not None and bool(kind.skipped or kind.named)


def alike(facts: ModelFacts, indexes: Iterable[int]) -> list[tuple[int, int]]:
    """Layers of the same shapes and storage: one of each kind, and how many there are.

    Where modules are stored by their names, every layer is its own kind.
    """
    if layers_differ(facts):
        return [(index, 1) for index in indexes]
    found: dict[Layer, tuple[int, int]] = {}
    for index in indexes:
        first, count = found.get(facts.layers[index], (index, 0))
        found[facts.layers[index]] = (first, count + 1)
    return list(found.values())


def layer_matrices(facts: ModelFacts, index: int) -> Iterator[Matrix]:
    return matrices_of(facts, facts.layers[index], f"layers.{index}")


def matrices_of(facts: ModelFacts, layer: Layer, name: str) -> Iterator[Matrix]:
    if layer.mixer is not None:
        yield from _mixer(layer.mixer, facts.hidden, name)
    beside = name if len(layer.feed_forward) > 1 else f"{name}.mlp"  # experts beside a dense block are not within it
    for block in layer.feed_forward:
        if isinstance(block, Dense):
            yield from _dense(block, facts.hidden, f"{name}.mlp")
        else:
            yield from _experts(block, facts.hidden, beside)
    yield _norms(layer, facts.hidden, name)
    if facts.layer_inputs is not None:
        yield from _added(facts.layer_inputs, facts.hidden, name)


def _added(inputs: LayerInputs, hidden: int, name: str) -> Iterator[Matrix]:
    """Source: `models/gemma3n.py` (`Gemma3nDecoderLayer`, `Gemma3nLaurelBlock`, `Gemma3nAltUp`)."""
    yield replicated(f"{name}.per_layer_input_gate", Part.DENSE, inputs.width, hidden)
    yield replicated(f"{name}.per_layer_projection", Part.DENSE, hidden, inputs.width)
    yield vector(f"{name}.post_per_layer_input_norm", Part.NORMS, hidden)
    if inputs.narrow:
        yield by_outputs(f"{name}.laurel.linear_left", Part.DENSE, inputs.narrow, hidden)
        yield by_inputs(f"{name}.laurel.linear_right", Part.DENSE, hidden, inputs.narrow)
        yield vector(f"{name}.laurel.post_laurel_norm", Part.NORMS, hidden)
    if inputs.streams > 1:
        yield replicated(f"{name}.altup.modality_router", Part.DENSE, inputs.streams, hidden)
        yield vector(f"{name}.altup", Part.NORMS, 2 * hidden + inputs.streams**3 + inputs.streams**2)


def layer_tables(facts: ModelFacts) -> Iterator[Matrix]:
    """The tables that all layers add from, and what leads into and out of the copies of the hidden state.

    Source: `models/gemma3n.py` (`Gemma3nSelfDecoder`, `Gemma3nTextModel`), `models/gemma4.py`.
    """
    inputs = facts.layer_inputs
    if inputs is None:
        return
    wide = len(facts.layers) * inputs.width
    yield Matrix(
        module="embed_tokens_per_layer",
        part=Part.EMBEDDING,
        outputs=inputs.words,
        inputs=wide,
        split=Split.VOCABULARY,
        linear=False,
    )
    yield by_outputs("per_layer_model_projection", Part.DENSE, wide, facts.hidden)
    yield vector("per_layer_projection_norm", Part.NORMS, inputs.width)
    for place in range(2 * (inputs.streams - 1)):
        yield by_outputs(f"altup_projections.{place}", Part.DENSE, facts.hidden, facts.hidden)


def _norms(layer: Layer, hidden: int, name: str) -> Matrix:
    return vector(f"{name}.norms", Part.NORMS, layer.norms * hidden)


def vector(module: str, part: Part, count: int) -> Matrix:
    return Matrix(module=module, part=part, outputs=1, inputs=count, split=Split.REPLICATED, linear=False)


def _mixer(mixer: Mixer, hidden: int, name: str) -> Iterator[Matrix]:
    if isinstance(mixer, Attention):
        return _attention(mixer, hidden, f"{name}.self_attn")
    if isinstance(mixer, LatentAttention):
        return _latent(mixer, hidden, f"{name}.self_attn")
    if isinstance(mixer, DeltaAttention):
        return _delta(mixer, hidden, f"{name}.linear_attn")
    return _state_space(mixer, hidden, f"{name}.mixer")


def _attention(mixer: Attention, hidden: int, name: str) -> Iterator[Matrix]:
    """Source: `model_executor/layers/linear.py` (`QKVParallelLinear`, `RowParallelLinear`)."""
    queries = mixer.heads * mixer.head_dim * (2 if mixer.output_gate else 1)
    yield by_outputs(f"{name}.q_proj", Part.ATTENTION, queries, hidden, bias=mixer.input_bias)
    widths = {"k_proj": mixer.head_dim} | ({} if mixer.values_are_keys else {"v_proj": mixer.value_dim})
    for projection, width in {} if mixer.shared else widths.items():
        keys = mixer.kv_heads * width
        yield Matrix(
            module=f"{name}.{projection}",
            part=Part.ATTENTION,
            outputs=keys,
            inputs=hidden,
            split=Split.KV_HEADS,
            kv_heads=mixer.kv_heads,
            vectors=keys if mixer.input_bias else 0,
        )
    yield by_inputs(f"{name}.o_proj", Part.ATTENTION, hidden, mixer.heads * mixer.value_dim, bias=mixer.output_bias)
    normed = 0 if not mixer.query_key_norm else 1 if mixer.shared else 2
    further = normed * mixer.head_dim + (mixer.heads if mixer.sinks else 0)
    if further:
        yield vector(f"{name}.norm", Part.NORMS, further)


def _latent(mixer: LatentAttention, hidden: int, name: str) -> Iterator[Matrix]:
    """Source: `model_executor/layers/mla.py`: what leads into the latents is replicated, what leads out divided."""
    latent = mixer.latent_rank + mixer.rope_dim
    queries = mixer.heads * (mixer.plain_dim + mixer.rope_dim)
    if mixer.query_rank:
        yield replicated(f"{name}.q_a_proj", Part.ATTENTION, mixer.query_rank, hidden)
        yield by_outputs(f"{name}.q_b_proj", Part.ATTENTION, queries, mixer.query_rank)
    else:
        yield by_outputs(f"{name}.q_proj", Part.ATTENTION, queries, hidden)
    yield replicated(f"{name}.kv_a_proj_with_mqa", Part.ATTENTION, latent, hidden)
    unfolded = mixer.heads * (mixer.plain_dim + mixer.value_dim)
    yield by_outputs(f"{name}.kv_b_proj", Part.ATTENTION, unfolded, mixer.latent_rank)
    yield by_inputs(f"{name}.o_proj", Part.ATTENTION, hidden, mixer.heads * mixer.value_dim)
    yield vector(f"{name}.norm", Part.NORMS, mixer.query_rank + mixer.latent_rank)
    if mixer.index_heads:
        wide = mixer.index_heads * mixer.index_dim
        yield replicated(f"{name}.indexer.wq_b", Part.INDEXER, wide, mixer.query_rank or hidden)
        yield replicated(f"{name}.indexer.wk", Part.INDEXER, mixer.index_dim, hidden)
        yield replicated(f"{name}.indexer.weights_proj", Part.INDEXER, mixer.index_heads, hidden, linear=False)


def _delta(mixer: DeltaAttention, hidden: int, name: str) -> Iterator[Matrix]:
    """Source: `model_executor/models/qwen3_next.py` (`Qwen3NextGatedDeltaNet`),
    `model_executor/layers/mamba/gdn/kimi_gdn_linear_attn.py`."""
    keys, values = mixer.key_heads * mixer.key_dim, mixer.value_heads * mixer.value_dim
    yield by_outputs(f"{name}.in_proj_qkv", Part.STATE, 2 * keys + values, hidden)
    if mixer.gate_rank:
        yield from _channel_gates(mixer, hidden, name)
    else:
        yield by_outputs(f"{name}.in_proj_z", Part.STATE, values, hidden)
        for gate in ("in_proj_b", "in_proj_a"):
            yield by_outputs(f"{name}.{gate}", Part.STATE, mixer.value_heads, hidden)
    wide = 2 if mixer.gate_rank else 1  # 32-bit numbers
    yield by_outputs(f"{name}.conv1d", Part.STATE, 2 * keys + values, wide * mixer.kernel, linear=False)
    yield vector(f"{name}.norm", Part.NORMS, 2 * mixer.value_heads + mixer.value_dim)
    yield by_inputs(f"{name}.out_proj", Part.STATE, hidden, values)


def _channel_gates(mixer: DeltaAttention, hidden: int, name: str) -> Iterator[Matrix]:
    """One gate that forgets and one on what comes out, each by two narrow matrices. Biases are 32-bit numbers."""
    values = mixer.value_heads * mixer.value_dim
    for gate in ("f", "g"):
        yield replicated(f"{name}.{gate}_a_proj", Part.STATE, mixer.gate_rank, hidden)
        yield by_outputs(f"{name}.{gate}_b_proj", Part.STATE, values, mixer.gate_rank)
    yield by_outputs(f"{name}.b_proj", Part.STATE, mixer.value_heads, hidden)
    yield vector(f"{name}.dt_bias", Part.NORMS, 2 * values)


def _state_space(mixer: StateSpace, hidden: int, name: str) -> Iterator[Matrix]:
    """Source: `model_executor/layers/mamba/mamba_mixer2.py`."""
    inner, mixed = mixer.heads * mixer.head_dim, 2 * mixer.groups * mixer.state
    yield by_outputs(f"{name}.in_proj", Part.STATE, 2 * inner + mixed + mixer.heads, hidden)
    yield by_outputs(f"{name}.conv1d", Part.STATE, inner + mixed, mixer.kernel + 1, linear=False)
    yield vector(f"{name}.norm", Part.NORMS, 3 * mixer.heads + inner)
    yield by_inputs(f"{name}.out_proj", Part.STATE, hidden, inner)


def _dense(block: Dense, hidden: int, name: str) -> Iterator[Matrix]:
    yield from _pair(name, Part.DENSE, block.intermediate, hidden, gated=block.gated, bias=block.bias)


def _experts(block: Experts, hidden: int, name: str) -> Iterator[Matrix]:
    """Source: `model_executor/layers/fused_moe/layer.py`: `w13` is divided by outputs, `w2` by inputs."""
    inside = block.latent or hidden
    yield replicated(f"{name}.gate", Part.ROUTER, block.count, hidden, linear=False)
    yield from _pair(
        f"{name}.experts",
        Part.EXPERTS,
        block.intermediate,
        inside,
        gated=block.gated,
        bias=block.bias,
        copies=block.count,
    )
    if block.latent:
        yield replicated(f"{name}.fc1_latent_proj", Part.SHARED_EXPERTS, block.latent, hidden)
        yield replicated(f"{name}.fc2_latent_proj", Part.SHARED_EXPERTS, hidden, block.latent)
    if block.shared:
        module = f"{name}.shared_experts"
        yield from _pair(module, Part.SHARED_EXPERTS, block.shared, hidden, gated=block.gated, bias=False)
    if block.shared_gate:
        yield replicated(f"{name}.shared_expert_gate", Part.ROUTER, 1, hidden, linear=False)


def _pair(
    module: str, part: Part, width: int, hidden: int, *, gated: bool, bias: bool, copies: int = 1
) -> Iterator[Matrix]:
    """What leads into a feed-forward block, its gate beside it, and what leads out."""
    merged = 2 if gated else 1
    yield Matrix(
        module=module if part is Part.EXPERTS else f"{module}.{'gate_up_proj' if gated else 'up_proj'}",
        part=part,
        outputs=merged * width,
        inputs=hidden,
        split=Split.OUTPUTS,
        copies=copies,
        merged=merged,
        vectors=merged * width if bias else 0,
    )
    yield Matrix(
        module=module if part is Part.EXPERTS else f"{module}.down_proj",
        part=part,
        outputs=hidden,
        inputs=width,
        split=Split.INPUTS,
        copies=copies,
        vectors=hidden if bias else 0,
    )


def vision_matrices(vision: Vision, hidden: int) -> Iterator[Matrix]:
    """The image encoder by the shapes that encoders share; what leads into the text model counts as a square pair."""
    for index in range(vision.depth):
        name = f"visual.blocks.{index}"
        for projection, outputs in (("qkv", 3 * vision.hidden), ("proj", vision.hidden)):
            yield by_outputs(f"{name}.attn.{projection}", Part.VISION, outputs, vision.hidden, linear=False)
        wide = vision.intermediate * (2 if vision.gated else 1)
        yield by_outputs(f"{name}.up_proj", Part.VISION, wide, vision.hidden, linear=False)
        yield by_inputs(f"{name}.down_proj", Part.VISION, vision.hidden, vision.intermediate, linear=False)
    yield replicated("visual.patch_embed", Part.VISION, vision.hidden, vision.patch_values, linear=False)
    yield by_outputs("visual.merger.0", Part.VISION, vision.merged, vision.merged, linear=False)
    yield by_inputs("visual.merger.2", Part.VISION, hidden, vision.merged, linear=False)


def by_outputs(
    module: str, part: Part, outputs: int, inputs: int, *, bias: bool = False, linear: bool = True
) -> Matrix:
    vectors = outputs if bias else 0
    return Matrix(
        module=module,
        part=part,
        outputs=outputs,
        inputs=inputs,
        split=Split.OUTPUTS,
        vectors=vectors,
        linear=linear,
    )


def by_inputs(module: str, part: Part, outputs: int, inputs: int, *, bias: bool = False, linear: bool = True) -> Matrix:
    vectors = outputs if bias else 0
    return Matrix(
        module=module, part=part, outputs=outputs, inputs=inputs, split=Split.INPUTS, vectors=vectors, linear=linear
    )


def replicated(module: str, part: Part, outputs: int, inputs: int, *, linear: bool = True) -> Matrix:
    return Matrix(module=module, part=part, outputs=outputs, inputs=inputs, split=Split.REPLICATED, linear=linear)
