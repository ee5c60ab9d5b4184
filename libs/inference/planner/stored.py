"""Corrects what is computed from a configuration by what a model's files hold."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from libs.common.errors import Malformed
from libs.inference.planner.facts import Certainty, ModelFacts
from libs.inference.planner.headers import StoredTensor
from libs.inference.planner.matrices import Part
from libs.inference.planner.parameters import all_matrices, parameter_count
from libs.inference.planner.weights import file_bytes

ENCODERS = ("vision", "visual", "mm_projector", "multi_modal_projector", "image_newline", "audio", "embed_vision")
TABLES = ("embed_tokens", "embed_in", "wte", "word_embeddings", "embed_positions", "token_embd")
DRAFTS = re.compile(r"(^|\.)mtp(\.|_)|(^|\.)eagle")
LAYER = re.compile(r"(?:layers|h|blocks|blk)\.(\d+)\.")
EXPERTS = re.compile(r"\.experts\.|_exps\.")
GROUPS: Mapping[Part, Part] = {
    Part.EMBEDDING: Part.EMBEDDING,
    Part.HEAD: Part.HEAD,
    Part.EXPERTS: Part.EXPERTS,
    Part.VISION: Part.VISION,
}
"""The parts that names of tensors tell apart; all others are counted together."""

LEAST_SCALE, MOST_SCALE = 0.25, 4.0
"""Beyond these a configuration and a number of bytes do not belong to the same model."""


def group_of(name: str, layers: int) -> Part | None:
    """What a tensor is for; None for a draft, which is not loaded unless it is asked for."""
    if DRAFTS.search(name):
        return None
    if any(word in name for word in ENCODERS):
        return Part.VISION
    if any(word in name for word in TABLES):
        return Part.EMBEDDING
    if "lm_head" in name or name == "output.weight":
        return Part.HEAD
    layer = LAYER.search(name)
    if layer is not None and int(layer[1]) >= layers:
        return None
    return Part.EXPERTS if EXPERTS.search(name) else Part.DENSE


def stored_bytes_by_group(tensors: Iterable[StoredTensor], layers: int) -> Mapping[Part, int]:
    """Bytes of what is loaded, by what it is for."""
    counted: Counter[Part] = Counter()
    for tensor in tensors:
        group = group_of(tensor.name, layers)
        if group is not None:
            counted[group] += tensor.size
    return counted


def computed_bytes_by_group(facts: ModelFacts) -> Mapping[Part, int]:
    """The same, as the configuration tells it."""
    counted: Counter[Part] = Counter()
    for matrix in all_matrices(facts):
        counted[GROUPS.get(matrix.part, Part.DENSE)] += file_bytes(facts, matrix)
    return counted


def with_stored_tensors(facts: ModelFacts, tensors: Iterable[StoredTensor]) -> ModelFacts:
    """Facts whose weights take what the files hold, part by part."""
    stored, computed = stored_bytes_by_group(tensors, len(facts.layers)), computed_bytes_by_group(facts)
    scales: list[tuple[str, float]] = []
    beside, strange = 0, []
    for group, size in stored.items():
        if group is Part.HEAD and facts.tied:
            continue
        if not computed.get(group):
            beside += size
            continue
        scale = size / computed[group]
        strange += [group.value] if not LEAST_SCALE <= scale <= MOST_SCALE else []
        scales += [(part.value, scale) for part in Part if GROUPS.get(part, Part.DENSE) is group]
    doubts = tuple(f"{name}: the files hold a very different size than the configuration tells" for name in strange)
    return replace(
        facts,
        scales=tuple(scales),
        beside=beside,
        doubts=(*facts.doubts, *doubts),
        certainty=Certainty.LOW if strange else facts.certainty,
    )


def with_weights_bytes(facts: ModelFacts, size: int) -> ModelFacts:
    """Facts whose weights take so many bytes in all. Raises `Malformed` where that cannot be this model."""
    return _scaled(facts, size / sum(computed_bytes_by_group(facts).values()), "weights_bytes", size)


def with_parameter_count(facts: ModelFacts, count: int) -> ModelFacts:
    """Facts with so many parameters in all. Raises `Malformed` where that cannot be this model."""
    return _scaled(facts, count / parameter_count(facts), "parameter_count", count)


def _scaled(facts: ModelFacts, scale: float, field: str, value: int) -> ModelFacts:
    if not LEAST_SCALE <= scale <= MOST_SCALE:
        text = f"{field} is {value}, {scale:.3g} times what model_config describes: one of the two is wrong"
        raise Malformed(text, field=field)
    return replace(facts, scales=tuple((part.value, scale) for part in Part))
