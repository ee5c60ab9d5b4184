"""What a forward pass and the choice of the next token take at their peak, beside the weights."""

from libs.inference.planner.drafts import drafting_layers, drafting_model
from libs.inference.planner.facts import Attention, Dense, DraftMethod, LatentAttention, ModelFacts
from libs.inference.planner.options import Options
from libs.inference.planner.split import Parallel

SORTING_BYTES = 38.5
"""Bytes per sequence and word of the vocabulary while the sampler sorts all words.

Scores in the model's type (2) and in 32 bits (4), sorted (4) with their places (8), and what sorting takes: the places
before (8), and scores and places once more (12). That is 38; start-up logs give 38.2 to 39.2 for models from 0.5 to 120
billion parameters, on one GPU and on several. Source: `v1/sample/ops/topk_topp_sampler.py` (`apply_top_k_top_p`), and
`model_executor/layers/sampler.py` (`_apply_top_k_top_p`) of the first generation.
"""

MASKING_BYTES = 18.5
"""The same where nothing is sorted.

Scores in the model's type (2) and in 32 bits (4), and twice more of these: probabilities and noise, or what FlashInfer
masks and makes probabilities of (8). Beside them rows for a kernel's work, at most as many as sequences (4), or, of the
newer runner, how often each word was written, and a bit for each word that was read (4.125). Source:
`v1/sample/ops/topk_topp_sampler.py`, `topk_topp_triton.py` (`apply_top_k_top_p_triton`), and
`v1/worker/gpu/sample/penalties.py` (`PenaltiesState`), from 0.17 to 0.33.
"""

MASKED_TOGETHER = 8
"""So many sequences are not sorted; fewer are. Source: `apply_top_k_top_p`, from 0.17 to 0.24."""

WORD_BYTES = 4

LARGEST_IMAGE_TOKENS = 16384
"""Merged patches of the largest image that the processors of Qwen2-VL and after let through (12.8 million pixels)."""

CHUNKED_FROM = 32768
"""Longer lengths are prefilled in chunks by the first generation. Source: its `engine/arg_utils.py`."""


def activation_bytes(facts: ModelFacts, parallel: Parallel, options: Options, stage: int = 0) -> int:
    """The peak on each GPU of a stage: of the forward pass, or of the sampler, which the last stage has.

    Source: `v1/worker/gpu_model_runner.py` (`profile_run`): the two follow each other, so the larger counts.
    """
    tokens = profiled_tokens(facts, options)
    peaks = [forward_bytes(facts, parallel, tokens)]
    if stage == parallel.pipeline - 1:
        peaks.append(sampler_bytes(facts, options, tokens))
    if stage == parallel.pipeline - 1 and drafting_layers(facts):
        peaks.append(forward_bytes(drafting_model(facts), parallel, tokens))
    if facts.vision is not None and stage == 0:
        peaks.append(encoder_bytes(facts, tokens))
    return max(peaks) + seen_words_bytes(facts, options)


def profiled_tokens(facts: ModelFacts, options: Options) -> int:
    """How many tokens the profiling pass runs. The first generation ran the longest length at once, or a chunk of it.

    Source: `config.py` (`SchedulerConfig`) of 0.5 to 0.9.
    """
    if not options.engine.first_generation or options.batched_tokens_given:
        return options.max_num_batched_tokens
    if options.max_model_len > CHUNKED_FROM and _comes_in_chunks(facts):
        return options.engine.chunk_tokens
    return max(options.max_num_batched_tokens, options.max_model_len)


def _comes_in_chunks(facts: ModelFacts) -> bool:
    """Images, windows, latents and drafts were not prefilled in chunks.

    Source: `engine/arg_utils.py` (`_set_default_args_v0`) of 0.8 and 0.9; `create_engine_config` before, and
    `config.py` (`VllmConfig`) for latents.
    """
    mixers = {layer.mixer for layer in facts.layers}
    windows = any(isinstance(mixer, Attention) and mixer.window for mixer in mixers)
    latents = any(isinstance(mixer, LatentAttention) for mixer in mixers)
    return not (windows or latents or facts.vision or facts.draft)


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


def sampler_bytes(facts: ModelFacts, options: Options, tokens: int) -> int:
    """Beside the scores the hidden states of all profiled tokens are there, until the pass ends.

    Who guesses ahead also holds the scores of a guessed word and of the one after it while it chooses. In the first
    generation every sequence of the pass was sampled too, in chunks or not.

    Source: `v1/worker/gpu_model_runner.py` (`profile_run`, `_dummy_sampler_run`), and `worker/model_runner.py`
    (`profile_run`) of the first generation.
    """
    sequences = min(options.max_num_seqs, options.max_num_batched_tokens)
    size = _scores_bytes(options, sequences) + (2 * facts.type_bytes if facts.draft else 0)
    return int(size * sequences * facts.vocabulary) + tokens * facts.hidden * facts.type_bytes


def _scores_bytes(options: Options, sequences: int) -> float:
    masks = options.engine.masks_scores and not options.on_processor
    return MASKING_BYTES if masks and sequences >= MASKED_TOGETHER else SORTING_BYTES


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
