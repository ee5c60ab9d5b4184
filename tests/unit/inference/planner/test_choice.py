"""Which division is chosen over equal GPUs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.inference.planner.choice import EqualGpus, Strategy, choose, divisions
from libs.inference.planner.memory import GIB, Verdict
from libs.inference.planner.options import Asked
from libs.inference.planner.rules import refusals
from libs.inference.planner.versions import Engine
from tests.unit.inference.planner.published import facts

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


def _gpus(per_node: int, gib: int, *, nodes: int = 1, linked: bool = True) -> EqualGpus:
    return EqualGpus(nodes=nodes, per_node=per_node, total_bytes=gib * GIB, linked=linked)


@pytest.mark.parametrize(
    ("name", "gpus", "strategy", "division"),
    [
        (LLAMA, _gpus(8, 80), Strategy.SINGLE_GPU, (1, 1)),
        ("meta-llama/Llama-3.1-70B-Instruct", _gpus(8, 80), Strategy.TENSOR_PARALLEL, (4, 1)),
        ("meta-llama/Llama-3.1-70B-Instruct", _gpus(8, 48, linked=False), Strategy.HYBRID_TP_PP, (2, 2)),
        ("deepseek-ai/DeepSeek-V3", _gpus(8, 80, nodes=2), Strategy.HYBRID_TP_PP, (8, 2)),
    ],
)
def test_the_first_division_that_fits_is_chosen(
    name: str, gpus: EqualGpus, strategy: Strategy, division: tuple[int, int]
):
    chosen = choose(facts(name), Asked(max_model_len=8192), Engine(), gpus)

    assert chosen.strategy is strategy
    assert chosen.parallel is not None
    assert (chosen.parallel.tensor, chosen.parallel.pipeline) == division


def test_more_requests_at_once_take_more_gpus():
    one, many = (
        choose(facts(LLAMA), Asked(max_model_len=32768), Engine(), _gpus(8, 40), concurrency=count).parallel
        for count in (1, 20)
    )

    assert one is not None
    assert many is not None
    assert one.gpus < many.gpus


def test_where_nothing_fits_every_division_says_why():
    chosen = choose(facts("deepseek-ai/DeepSeek-V3"), Asked(max_model_len=8192), Engine(), _gpus(2, 24))

    assert chosen.parallel is None
    assert len(chosen.declined) == 3
    assert all(declined.message for declined in chosen.declined)


def test_ranks_of_a_stage_never_span_nodes():
    assert max(parallel.tensor for parallel in divisions(_gpus(4, 80, nodes=3))) == 4


@given(st.integers(1, 4), st.integers(1, 3), st.integers(12, 96), st.booleans())
def test_what_is_chosen_is_accepted_fits_and_is_there(per_node: int, nodes: int, gib: int, linked: bool):
    gpus = _gpus(per_node, gib, nodes=nodes, linked=linked)
    chosen = choose(facts(LLAMA), Asked(max_model_len=8192), Engine(), gpus)

    if chosen.parallel is not None and chosen.start is not None:
        assert refusals(facts(LLAMA), chosen.parallel) == []
        assert chosen.start.verdict is Verdict.FITS
        assert chosen.parallel.gpus <= per_node * nodes
