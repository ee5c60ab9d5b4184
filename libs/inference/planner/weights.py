"""Bytes of weights on one GPU, as vLLM divides, pads and stores them."""

from collections import Counter
from collections.abc import Iterator, Mapping

from libs.inference.planner.drafts import draft_matrices, drafting_model
from libs.inference.planner.facts import Layer, ModelFacts, Quantisation
from libs.inference.planner.families import FAMILIES, UNKNOWN
from libs.inference.planner.matrices import (
    Matrix,
    Part,
    Split,
    alike,
    embedding,
    final_norm,
    head,
    layer_matrices,
    layer_tables,
    layers_differ,
    vision_matrices,
)
from libs.inference.planner.parameters import position_table
from libs.inference.planner.quantisation import storage_of
from libs.inference.planner.split import Parallel, stage_ranges

VOCABULARY_PADDING = 64
"""Source: `model_executor/layers/vocab_parallel_embedding.py` (`DEFAULT_VOCAB_PADDING_SIZE`)."""

MXFP4_INTERMEDIATE, MXFP4_HIDDEN = 128, 256
"""What Marlin pads experts to; the widest padding among the kernels that may run.

Source: `model_executor/layers/quantization/mxfp4.py` (`create_weights`).
"""


def rounded_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def end_matrices(facts: ModelFacts, parallel: Parallel, stage: int) -> Iterator[Matrix]:
    """What a stage holds beside its layers: the embedding on the first, the output layer on the last.

    Source: `model_executor/models/llama.py`; a tied embedding is on both ends. The image encoder is on the first, and
    tables of which every layer adds are on all of them.
    """
    yield from layer_tables(facts)
    if stage == 0:
        yield embedding(facts)
        positions = FAMILIES.get(facts.architecture, UNKNOWN).embedded_positions
        if positions:
            yield position_table(facts, positions)
        if facts.vision is not None:
            yield from vision_matrices(facts.vision, facts.hidden)
    if stage == parallel.pipeline - 1:
        yield final_norm(facts)
        if not facts.tied or stage > 0:
            yield head(facts)


def weight_bytes_by_part(facts: ModelFacts, parallel: Parallel, stage: int = 0) -> Mapping[Part, int]:
    """Bytes of weights on each GPU of a stage, without the table of rotations."""
    counted: Counter[Part] = Counter()
    for matrix in end_matrices(facts, parallel, stage):
        counted[matrix.part] += matrix_bytes(facts, matrix, parallel)
    for index, count in alike(facts, stage_ranges(len(facts.layers), parallel)[stage]):
        for matrix in layer_matrices(facts, index):
            counted[matrix.part] += count * matrix_bytes(facts, matrix, parallel)
    return counted


def weight_bytes(facts: ModelFacts, parallel: Parallel, stage: int = 0) -> int:
    """Bytes that loading the model takes on each GPU of a stage."""
    layers = sum(weight_bytes_by_part(facts, parallel, stage).values())
    beside = (facts.beside if stage == 0 else 0) + draft_bytes(facts, parallel, stage)
    return layers + rotation_bytes(facts) + beside


def layer_bytes(facts: ModelFacts, parallel: Parallel) -> tuple[int, ...]:
    """Bytes of each layer on one GPU of the stage that holds it, whatever the stages are."""
    sizes: dict[Layer, int] = {}
    found = []
    for index, layer in enumerate(facts.layers):
        if layers_differ(facts) or layer not in sizes:
            sizes[layer] = sum(matrix_bytes(facts, matrix, parallel) for matrix in layer_matrices(facts, index))
        found.append(sizes[layer])
    return tuple(found)


def end_bytes(facts: ModelFacts, parallel: Parallel, stage: int) -> int:
    """Bytes of what a stage holds beside its layers, with the table of rotations."""
    beside = (facts.beside if stage == 0 else 0) + draft_bytes(facts, parallel, stage)
    matrices = end_matrices(facts, parallel, stage)
    return rotation_bytes(facts) + beside + sum(matrix_bytes(facts, matrix, parallel) for matrix in matrices)


def draft_bytes(facts: ModelFacts, parallel: Parallel, stage: int) -> int:
    """Bytes of what guesses ahead on each GPU of a stage: of the last one, divided as the model is."""
    if facts.draft is None or stage != parallel.pipeline - 1:
        return 0
    model = drafting_model(facts)
    matrices = draft_matrices(facts, alone=parallel.pipeline == 1)
    beside = rotation_bytes(model) + model.beside if facts.draft.model else 0
    return beside + sum(matrix_bytes(model, matrix, parallel) for matrix in matrices)


def rotation_bytes(facts: ModelFacts) -> int:
    """The table of cosines and sines, one for all layers. Source: `model_executor/layers/rotary_embedding/base.py`."""
    return facts.max_position * facts.rope_dim * facts.type_bytes


def matrix_bytes(facts: ModelFacts, matrix: Matrix, parallel: Parallel) -> int:
    """Bytes of one matrix, or of all experts of a layer, on one GPU."""
    stored = _storage(facts, matrix)
    copies, outputs, inputs = rank_shape(facts, matrix, parallel)
    unfolded = _unfolded(facts, matrix, outputs, inputs) if stored is not None else 0
    if stored is not None and stored.method == "mxfp4" and matrix.part is Part.EXPERTS:
        outputs, inputs = _padded_for_mxfp4(matrix, outputs, inputs)
    vectors = matrix.vectors * outputs // matrix.outputs * facts.type_bytes
    if stored is None:
        size = copies * (outputs * inputs * facts.type_bytes + vectors)
    else:
        size = copies * (stored_bytes(stored, outputs, inputs) + vectors)
    return int(size * scale_of(facts, matrix.part)) + unfolded + adapter_bytes(facts, matrix, parallel)


def adapter_bytes(facts: ModelFacts, matrix: Matrix, parallel: Parallel) -> int:
    """Room for the two narrow matrices of every LoRA adapter beside one matrix, on one GPU, taken when it is loaded.

    The first leads from the inputs to the rank, once for each matrix that is kept as one, and is divided only where the
    inputs are; the second leads to the outputs, and is divided where they are. Of the head and the embedding neither is
    divided. Source: `lora/layers/column_parallel_linear.py`, `row_parallel_linear.py`, `fused_moe.py`,
    `logits_processor.py`, `vocab_parallel_embedding.py` (`create_lora_weights`).
    """
    if facts.adapters is None or not (matrix.linear or matrix.part is Part.EMBEDDING) or matrix.part is Part.VISION:
        return 0
    copies, outputs, inputs = rank_shape(facts, matrix, parallel)
    if matrix.split is Split.VOCABULARY:
        outputs = rounded_up(matrix.outputs, VOCABULARY_PADDING)
    narrow = matrix.merged * inputs + outputs
    return facts.adapters.count * facts.adapters.rank * copies * narrow * facts.type_bytes


def file_bytes(facts: ModelFacts, matrix: Matrix) -> int:
    """Bytes of one matrix as a file holds it, without what vLLM pads or keeps twice."""
    stored, vectors = _storage(facts, matrix), matrix.vectors * facts.type_bytes
    if stored is None:
        return matrix.copies * (matrix.outputs * matrix.inputs * facts.type_bytes + vectors)
    return matrix.copies * (stored_bytes(stored, matrix.outputs, matrix.inputs) + vectors)


def scale_of(facts: ModelFacts, part: Part) -> float:
    return next((scale for name, scale in facts.scales if name == part), 1.0) if facts.scales else 1.0


def _storage(facts: ModelFacts, matrix: Matrix) -> Quantisation | None:
    """Tables and the output layer are never quantised by a method for all layers, only where they are named."""
    kind = facts.quantisation
    if kind is None or not matrix.linear:
        return None
    if matrix.part is Part.HEAD and kind.method != "mixed":
        return None
    if kind.experts_only and matrix.part is not Part.EXPERTS:
        return None
    return storage_of(kind, matrix.module)


def rank_shape(facts: ModelFacts, matrix: Matrix, parallel: Parallel) -> tuple[int, int, int]:
    """Copies, outputs and inputs of a matrix on one GPU."""
    ranks = parallel.tensor
    if matrix.part is Part.EXPERTS and parallel.expert_parallel:
        return -(-(matrix.copies + parallel.manner.redundant) // ranks), matrix.outputs, matrix.inputs
    if matrix.part is Part.VISION and encoder_is_whole(facts, parallel):
        return matrix.copies, matrix.outputs, matrix.inputs
    if matrix.split is Split.OUTPUTS:
        return matrix.copies, -(-matrix.outputs // ranks), matrix.inputs
    if matrix.split is Split.INPUTS:
        return matrix.copies, matrix.outputs, -(-matrix.inputs // ranks)
    if matrix.split is Split.KV_HEADS:
        heads = max(1, -(-matrix.kv_heads // ranks))
        return matrix.copies, matrix.outputs // matrix.kv_heads * heads, matrix.inputs
    if matrix.split is Split.VOCABULARY:
        return matrix.copies, -(-rounded_up(matrix.outputs, VOCABULARY_PADDING) // ranks), matrix.inputs
    return matrix.copies, matrix.outputs, matrix.inputs


ENCODERS_AS_WANTED = frozenset(
    {
        *("Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration", "Qwen3VLForConditionalGeneration"),
        *("Qwen3VLMoeForConditionalGeneration", "Qwen3_5ForConditionalGeneration"),
        *("Qwen3_5MoeForConditionalGeneration", "Llama4ForConditionalGeneration", "KimiK25ForConditionalGeneration"),
    }
)
"""Architectures whose encoder may be whole on every rank; of others vLLM divides it all the same.

Source: `supports_encoder_tp_data` in `models/*.py`.
"""


def encoder_is_whole(facts: ModelFacts, parallel: Parallel) -> bool:
    return parallel.manner.whole_encoder and facts.architecture in ENCODERS_AS_WANTED


def _padded_for_mxfp4(matrix: Matrix, outputs: int, inputs: int) -> tuple[int, int]:
    if matrix.split is Split.INPUTS:
        return rounded_up(outputs, MXFP4_HIDDEN), rounded_up(inputs, MXFP4_INTERMEDIATE)
    width = rounded_up(outputs // matrix.merged, MXFP4_INTERMEDIATE)
    return width * matrix.merged, rounded_up(inputs, MXFP4_HIDDEN)


def stored_bytes(kind: Quantisation, outputs: int, inputs: int) -> int:
    """Bytes of a quantised matrix with its scales and zero points."""
    size = outputs * inputs * kind.bits // 8
    if kind.block is not None:
        return size + 4 * -(-outputs // kind.block[0]) * -(-inputs // kind.block[1])
    if not kind.group:
        return size + 4 * outputs
    groups = outputs * -(-inputs // kind.group)
    return size + groups * (kind.scale_bits + (kind.bits if kind.zero_points else 0)) // 8


def _unfolded(facts: ModelFacts, matrix: Matrix, outputs: int, inputs: int) -> int:
    """Latent attention keeps what leads out of its latents a second time, unquantised.

    Source: `model_executor/layers/attention/mla_attention.py` (`process_weights_after_loading`).
    """
    return outputs * inputs * facts.type_bytes if matrix.module.endswith(".kv_b_proj") else 0
