from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from libs.common.kit.tallies import Durations, Tally

BOUNDS = (0.001, 0.5, 1.0, 30.0)
SECONDS = st.one_of(st.sampled_from(BOUNDS), st.floats(0, 100))


def told(registry: CollectorRegistry) -> list[str]:
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


@given(st.lists(st.tuples(st.sampled_from("ab"), SECONDS)))
def test_seconds_are_told_as_prometheus_own_histogram_tells_them(heard: list[tuple[str, float]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    durations = Durations("mesh_x_seconds", "How long.", BOUNDS, ("kind",), registry=ours)
    histogram = Histogram("mesh_x_seconds", "How long.", ("kind",), buckets=BOUNDS, registry=theirs)

    for kind, seconds in heard:
        durations.add((kind,), seconds)
        histogram.labels(kind).observe(seconds)

    assert sorted(told(ours)) == sorted(told(theirs))


@given(st.lists(st.sampled_from("ab")))
def test_a_tally_is_told_as_prometheus_own_counter_is_told(heard: list[str]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tally = Tally("mesh_x", "How many.", ("kind",), registry=ours)
    counter = Counter("mesh_x", "How many.", ("kind",), registry=theirs)

    for kind in heard:
        tally.counts[kind,] += 1
        counter.labels(kind).inc()

    assert sorted(told(ours)) == sorted(told(theirs))


def test_without_labels_nothing_counted_is_told_as_nought() -> None:
    registry = CollectorRegistry()
    Tally("mesh_x", "How many.", registry=registry)
    Durations("mesh_x_seconds", "How long.", BOUNDS, registry=registry)

    page = told(registry)

    assert "mesh_x_total 0.0" in page
    assert "mesh_x_seconds_count 0.0" in page
