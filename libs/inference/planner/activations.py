"""What a forward pass and the choice of the next token take at their peak, beside the weights."""

from libs.inference.planner.drafts import drafting_layers, drafting_model
from libs.inference.planner.facts import Dense, DraftMethod, ModelFacts
from libs.inference.planner.options import Options
from libs.inference.planner.split import Parallel

SAMPLER_BYTES = 39
"""Bytes per sequence and word of the vocabulary while the sampler sorts all words.

32-bit scores, their sorted copy with 64-bit places, probabilities, sums and masks are alive at once. Start-up logs give
38.4 to 41 for models from 0.6 to 120 billion parameters, whatever the size, the length and the number of GPUs.
Source: `v1/sample/ops/topk_topp_sampler.py`.
"""

WORD_BYTES = 4

LARGEST_IMAGE_TOKENS = 16384
"""Merged patches of the largest image that the processors of Qwen2-VL and after let through (12.8 million pixels)."""

CHUNKED_FROM = 32768
CHUNK_TOKENS = 512
"""The first generation prefilled lengths beyond `CHUNKED_FROM` in chunks. Source: its `engine/arg_utils.py`."""


def activation_bytes(facts: ModelFacts, parallel: Parallel, options: Options, stage: int = 0) -> int:
    """The peak on each GPU of a stage: of the forward pass, or of the sampler, which the last stage has.

    Source: `v1/worker/gpu_model_runner.py` (`profile_run`): the two follow each other, so the larger counts.
    """
    tokens = profiled_tokens(options)
    peaks = [forward_bytes(facts, parallel, tokens)]
    if stage == parallel.pipeline - 1 and not _chunks_hide_the_sampler(options):
        peaks.append(sampler_bytes(facts, options))
    if stage == parallel.pipeline - 1 and drafting_layers(facts):
        peaks.append(forward_bytes(drafting_model(facts), parallel, tokens))
    if facts.vision is not None and stage == 0:
        peaks.append(encoder_bytes(facts, tokens))
    return max(peaks) + seen_words_bytes(facts, options)


def profiled_tokens(options: Options) -> int:
    """How many tokens the profiling pass runs. The first generation ran the longest length at once."""
    if not options.engine.first_generation or options.batched_tokens_given:
        return options.max_num_batched_tokens
    if options.max_model_len > CHUNKED_FROM:
        return CHUNK_TOKENS
    return max(options.max_num_batched_tokens, options.max_model_len)


def _chunks_hide_the_sampler(options: Options) -> bool:
    """No sequence of a chunked profiling pass came to its end, so no token was chosen."""
    return options.engine.first_generation and options.max_model_len > CHUNKED_FROM


def forward_bytes(facts: ModelFacts, parallel: Parallel, tokens: int) -> int:
    """Hidden states thrice (residual, input, result) and the widest feed-forward block with its gated product.

    Experts keep a copy per chosen expert. Source: `model_executor/layers/activation.py` (`SiluAndMul`),
    `fused_moe/fused_moe.py` (the three caches of `fused_experts_impl`).
    """
    widest = 0
    for block in {block for layer in facts.layers for block in layer.feed_forward}:
        inner = 3 * -(-block.intermediate // parallel.tensor)
        widest = max(widest, inner if isinstance(block, Dense) else block.chosen * (inner + facts.hidden))
    return tokens * (3 * facts.hidden + widest + _added_width(facts)) * facts.type_bytes


def _added_width(facts: ModelFacts) -> int:
    """What each layer adds, looked up and projected at once for all, and copies of the hidden state before and after.

    Source: `models/gemma3n.py` (`project_per_layer_inputs`, `altup_embed`).
    """
    inputs = facts.layer_inputs
    if inputs is None:
        return 0
    return 2 * len(facts.layers) * inputs.width + 2 * (inputs.streams - 1) * facts.hidden


def sampler_bytes(facts: ModelFacts, options: Options) -> int:
    """Who guesses ahead also holds the scores of a guessed word and of the one after it while it chooses.

    Source: `v1/worker/gpu_model_runner.py` (`_dummy_sampler_run`).
    """
    size = SAMPLER_BYTES + (2 * facts.type_bytes if facts.draft else 0)
    return size * min(options.max_num_seqs, options.max_num_batched_tokens) * facts.vocabulary


def seen_words_bytes(facts: ModelFacts, options: Options) -> int:
    """Words are looked up among those seen before on the GPU itself since 0.32: all of every sequence lie there.

    Source: `v1/worker/gpu/states.py` (`RequestState.all_token_ids`).
    """
    if facts.draft is None or facts.draft.method is not DraftMethod.NGRAM or options.engine.version < (0, 32):
        return 0
    return WORD_BYTES * options.max_num_seqs * options.max_model_len


def encoder_bytes(facts: ModelFacts, tokens: int) -> int:
    """The image encoder on the tokens of a step or of the largest image: queries, keys, values, states and its block.

    Source: `v1/worker/gpu_model_runner.py` (the encoder's budget in `profile_run`).
    """
    if facts.vision is None:
        return 0
    merged = max(1, facts.vision.merged // facts.vision.hidden)
    width = 9 * facts.vision.hidden + 3 * facts.vision.intermediate
    return max(tokens, LARGEST_IMAGE_TOKENS) * merged * width * facts.type_bytes
