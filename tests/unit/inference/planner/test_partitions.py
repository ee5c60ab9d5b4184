"""How layers are dealt out over unlike stages."""

from hypothesis import given
from hypothesis import strategies as st

from libs.inference.planner.partitions import fastest_partition, partition, slowest

SIZES = st.lists(st.integers(0, 20), min_size=1, max_size=6)


@given(st.integers(1, 60), SIZES)
def test_a_partition_names_all_layers_and_no_stage_holds_too_many(layers: int, most: list[int]):
    found = partition(layers, len(most), lambda stage, held: len(held) <= most[stage])

    if found is not None:
        assert sum(found) == layers
        assert all(0 < size <= limit for size, limit in zip(found, most, strict=True))


@given(st.integers(1, 60), SIZES)
def test_a_partition_is_found_where_there_is_one(layers: int, most: list[int]):
    found = partition(layers, len(most), lambda stage, held: len(held) <= most[stage])

    assert (found is not None) == (sum(most) >= layers >= len(most) and min(most) > 0)


@given(st.integers(6, 60), st.lists(st.floats(0.5, 8), min_size=2, max_size=5))
def test_the_slowest_stage_of_the_fastest_partition_is_no_slower_than_an_even_one(layers: int, speeds: list[float]):
    def seconds(stage: int, held: range) -> float:
        return len(held) / speeds[stage]

    stages = len(speeds)
    even = tuple(layers // stages + (1 if place < layers % stages else 0) for place in range(stages))
    found = fastest_partition(layers, stages, lambda *_: True, seconds)

    assert found is not None
    assert slowest(found, seconds) <= slowest(even, seconds) * 1.001
