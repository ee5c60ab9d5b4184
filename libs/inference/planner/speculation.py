"""What a user says of drafts, in the words of vLLM's `--speculative-config`.

Source: `config/speculative.py` of vLLM 0.32 (`SpeculativeConfig`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from libs.common.errors import Malformed
from libs.inference.planner.architectures import model_facts
from libs.inference.planner.drafts import KNOWN_TO_DRAFT
from libs.inference.planner.facts import Draft, DraftMethod, ModelFacts
from libs.inference.planner.fields import Fields, Unsupported
from libs.inference.planner.headers import StoredTensor
from libs.inference.planner.stored import TABLES, with_stored_tensors

HEAD_PLAIN, HEAD_NORMED = "LlamaForCausalLM", "Qwen3ForCausalLM"
AUX_STATES = 3
"""States of the model that a head of EAGLE 3 is fed where its configuration names no number of them."""

NO_SIZE = (
    "num_speculative_tokens must be provided with speculative model unless the draft model config contains an "
    "n_predict parameter."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a user says of drafts, in the words of vLLM's `--speculative-config`."""

    method: str | None = None
    model: str | None = None
    num_speculative_tokens: int | None = None
    draft_tensor_parallel_size: int | None = None


def method_of(wanted: Wanted) -> DraftMethod:
    """The method as vLLM finds it where none is named. Raises `Malformed` for one that is not planned here."""
    if wanted.method is not None:
        if wanted.method not in set(DraftMethod):
            known = ", ".join(DraftMethod)
            field = "speculative_config.method"
            raise Malformed(f"{field} must be one of {known}, not {wanted.method!r}", field=field)
        return DraftMethod(wanted.method)
    name = (wanted.model or "").lower()
    if name in ("ngram", "[ngram]"):
        return DraftMethod.NGRAM
    return (
        DraftMethod.EAGLE if "eagle-" in name else DraftMethod.EAGLE3 if "eagle3" in name else DraftMethod.DRAFT_MODEL
    )


def needs_documents(wanted: Wanted) -> bool:
    """Whether a second model is loaded. Raises `Malformed`."""
    return method_of(wanted) not in (DraftMethod.NGRAM, DraftMethod.MTP)


def with_draft(
    facts: ModelFacts,
    wanted: Wanted,
    config: Mapping[str, object] | None = None,
    quantisation: Mapping[str, object] | None = None,
    tensors: Iterable[StoredTensor] = (),
) -> ModelFacts:
    """The same model with drafts; `config` and what follows are those of the other model or the head, if there is one.

    Its numbers are of the model's type, whatever its configuration says.

    Raises `Malformed` for what contradicts itself, `Unsupported` for a draft that cannot be sized.
    """
    method = method_of(wanted)
    stored = tuple(tensors)
    tokens = wanted.num_speculative_tokens or (facts.draft_layers if method is DraftMethod.MTP else 0)
    if not tokens:
        raise Malformed(NO_SIZE, field="speculative_config.num_speculative_tokens")
    if method is DraftMethod.MTP and facts.draft_layers and facts.architecture not in KNOWN_TO_DRAFT:
        text = f"speculative_config.method: how {facts.architecture} drafts for itself cannot be sized"
        raise Unsupported(text, field="speculative_config.method")
    draft = Draft(method=method, tokens=tokens, asked_tensor=wanted.draft_tensor_parallel_size)
    if config is not None and method is DraftMethod.DRAFT_MODEL:
        model = replace(model_facts(config, quantisation), type_bytes=facts.type_bytes)
        draft = replace(draft, model=with_stored_tensors(model, stored) if stored else model)
    elif config is not None and needs_documents(wanted):
        draft = _head(draft, facts, config, quantisation, stored)
    return replace(facts, draft=draft)


def _head(
    draft: Draft,
    facts: ModelFacts,
    config: Mapping[str, object],
    quantisation: Mapping[str, object] | None,
    stored: tuple[StoredTensor, ...],
) -> Draft:
    """A head of EAGLE: its embedding is the model's, but where its files hold one that may differ.

    It must be told apart by its values, which are not read: one that is there is counted.
    Source: `llm_base_proposer.py` (`_maybe_share_embeddings`), `models/llama_eagle3.py` (`Eagle3LlamaForCausalLM`).
    """
    whole = Fields(config)
    named = next(iter(whole.texts("architectures")), "")
    plain = HEAD_NORMED if "Qwen3" in named and "vl" not in named.lower() else HEAD_PLAIN
    model = model_facts({**config, "architectures": [plain]}, quantisation)
    words = whole.count("draft_vocab_size", default=model.vocabulary, least=1)
    part = whole.part("eagle_config")
    states = len(part.counts("eagle_aux_hidden_state_layer_ids")) if part else 0
    width = whole.count("target_hidden_size", default=model.hidden, least=1)
    return replace(
        draft,
        model=replace(model, max_position=max(model.max_position, facts.max_position), type_bytes=facts.type_bytes),
        head_words=words,
        aux_inputs=width * whole.count("num_aux_hidden_states", default=states or AUX_STATES, least=1),
        own_words=any(word in tensor.name for tensor in stored for word in TABLES),
    )
