"""How many parameters a model has, by what they are for."""

from collections import Counter
from collections.abc import Iterator, Mapping

from libs.inference.planner.facts import ModelFacts
from libs.inference.planner.families import FAMILIES, UNKNOWN
from libs.inference.planner.matrices import (
    Matrix,
    Part,
    embedding,
    final_norm,
    head,
    layer_matrices,
    layer_tables,
    replicated,
    vision_matrices,
)


def all_matrices(facts: ModelFacts) -> Iterator[Matrix]:
    """Every weight once: a tied output layer is the embedding, and drafts are not among them."""
    yield embedding(facts)
    yield from layer_tables(facts)
    positions = FAMILIES.get(facts.architecture, UNKNOWN).embedded_positions
    if positions:
        yield position_table(facts, positions)
    for index in range(len(facts.layers)):
        yield from layer_matrices(facts, index)
    yield final_norm(facts)
    if not facts.tied:
        yield head(facts)
    if facts.vision is not None:
        yield from vision_matrices(facts.vision, facts.hidden)


def parameters_by_part(facts: ModelFacts) -> Mapping[Part, int]:
    counted: Counter[Part] = Counter()
    for matrix in all_matrices(facts):
        counted[matrix.part] += matrix.parameters
    return counted


def parameter_count(facts: ModelFacts) -> int:
    return sum(parameters_by_part(facts).values())


def active_parameter_count(facts: ModelFacts) -> int:
    """The parameters that one token uses: of the routed experts only those it is sent to."""
    idle = 0
    for matrix in all_matrices(facts):
        if matrix.part is Part.EXPERTS:
            chosen = min(facts.experts[0].chosen, matrix.copies)
            idle += matrix.parameters * (matrix.copies - chosen) // matrix.copies
    return parameter_count(facts) - idle


def position_table(facts: ModelFacts, offset: int) -> Matrix:
    """A learned vector per position, where positions are not rotations."""
    count = facts.max_position + offset
    return replicated("embed_positions", Part.EMBEDDING, count, facts.hidden, linear=False)
