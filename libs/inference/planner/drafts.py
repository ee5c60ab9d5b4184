"""What guesses tokens ahead of a model: its layers, each with a cache, and its weights. All is on the last stage.

Source: `v1/spec_decode/llm_base_proposer.py` and `v1/worker/gpu/model_runner.py` of vLLM 0.32.
"""

from collections.abc import Iterator
from dataclasses import replace

from libs.inference.planner.facts import Attention, Draft, DraftMethod, LatentAttention, Layer, ModelFacts
from libs.inference.planner.matrices import (
    Matrix,
    Part,
    by_outputs,
    embedding,
    final_norm,
    head,
    layer_matrices,
    matrices_of,
    replicated,
    vector,
)

ONE_PROJECTION = frozenset(
    {"Qwen3NextForCausalLM", "Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration"}
)
"""All layers that draft share one projection, divided by its outputs. Others have one each, whole on every GPU."""

KNOWN_TO_DRAFT = ONE_PROJECTION | {
    *("DeepseekV3ForCausalLM", "DeepseekV32ForCausalLM", "GlmMoeDsaForCausalLM", "Glm4MoeForCausalLM"),
    "MiMoForCausalLM",
}
"""Architectures that guess ahead with layers of their own (MTP), and how those are built.

Source: `models/deepseek_mtp.py`, `glm4_moe_mtp.py`, `qwen3_next_mtp.py`, `qwen3_5_mtp.py`, `mimo_mtp.py`.
"""


def draft_tokens(facts: ModelFacts) -> int:
    """How many tokens are guessed in each step."""
    return facts.draft.tokens if facts.draft else 0


def drafting_layers(facts: ModelFacts) -> tuple[Layer, ...]:
    """The layers that drafts add. Those of the model itself are built as its last one that sees all tokens."""
    if facts.draft is None:
        return ()
    if facts.draft.method is DraftMethod.MTP:
        return (_last_whole(facts),) * facts.draft_layers
    return tuple(facts.draft.model.layers) if facts.draft.model else ()


def _last_whole(facts: ModelFacts) -> Layer:
    return next(layer for layer in (*reversed(facts.layers), facts.layers[-1]) if _sees_all(layer))


def _sees_all(layer: Layer) -> bool:
    if isinstance(layer.mixer, Attention):
        return layer.mixer.window is None and layer.mixer.chunk is None
    return isinstance(layer.mixer, LatentAttention)


def drafting_model(facts: ModelFacts) -> ModelFacts:
    """Whose layers those are: the other model's or the head's, or the model's own. Adapters are not for drafts."""
    return facts.draft.model if facts.draft and facts.draft.model else replace(facts, adapters=None)


def draft_matrices(facts: ModelFacts, *, alone: bool) -> Iterator[Matrix]:
    """What is loaded for drafts beside the model; `alone` where it has no other stage than this one.

    An embedding is shared with the model where it is on the same stage, and the output layer where a draft has none.
    """
    draft = facts.draft
    if draft is None or draft.method is DraftMethod.NGRAM:
        return
    if draft.method is DraftMethod.MTP:
        yield from _own_layers(facts)
        yield from () if alone else (embedding(facts),)
    elif draft.model is not None:
        yield from _whole(draft.model) if draft.method is DraftMethod.DRAFT_MODEL else _head(draft, draft.model)
        if draft.method is DraftMethod.DRAFT_MODEL or draft.own_words or not alone:
            yield embedding(draft.model)


def _own_layers(facts: ModelFacts) -> Iterator[Matrix]:
    shared = facts.architecture in ONE_PROJECTION
    for place, layer in enumerate(drafting_layers(facts)):
        name = f"mtp.layers.{place}" if shared else f"layers.{len(facts.layers) + place}"
        yield from matrices_of(facts, layer, name)
        if shared and place:
            continue
        if shared:
            yield by_outputs("mtp.fc", Part.DENSE, facts.hidden, 2 * facts.hidden)
        else:
            yield replicated(f"{name}.eh_proj", Part.DENSE, facts.hidden, 2 * facts.hidden, linear=False)
        yield vector(f"{name}.draft_norms", Part.NORMS, 3 * facts.hidden)


def _whole(model: ModelFacts) -> Iterator[Matrix]:
    for index in range(len(model.layers)):
        yield from layer_matrices(model, index)
    yield final_norm(model)
    if not model.tied:
        yield head(model)


def _head(draft: Draft, model: ModelFacts) -> Iterator[Matrix]:
    """The first layer of EAGLE 3 is fed two states. Source: `models/llama_eagle.py`, `models/llama_eagle3.py`."""
    third = draft.method is DraftMethod.EAGLE3
    yield replicated("fc", Part.DENSE, model.hidden, draft.aux_inputs if third else 2 * model.hidden)
    for index in range(len(model.layers)):
        for matrix in layer_matrices(model, index):
            doubled = third and index == 0 and matrix.module.endswith(("q_proj", "k_proj", "v_proj"))
            yield replace(matrix, inputs=2 * matrix.inputs) if doubled else matrix
        if third:
            yield vector(f"layers.{index}.hidden_norm", Part.NORMS, model.hidden)
    if third:
        yield final_norm(model)
        yield head(replace(model, vocabulary=draft.head_words))
