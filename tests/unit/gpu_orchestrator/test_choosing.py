"""Which GPUs a reservation gets."""

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from libs.common.contracts.node_registry import GpuLink
from services.gpu_orchestrator.choosing import Choice, Wish, choose, ranks_of
from services.gpu_orchestrator.model import RAM, Entry


def ledger(*free: int, ram: int = 1000, problem: str | None = None) -> dict[str, Entry]:
    entries = {f"G{n}": Entry(uuid=f"G{n}", total_mb=100_000, margin_mb=0, free_mb=mb) for n, mb in enumerate(free)}
    if problem:
        entries["G0"] = Entry(uuid="G0", total_mb=100_000, margin_mb=0, free_mb=free[0], problem=problem)
    return entries | {RAM: Entry(uuid=RAM, total_mb=ram, margin_mb=0, free_mb=ram)}


def link(first: int, second: int, path: str = "SYS", nvlinks: int = 0) -> GpuLink:
    return GpuLink(first=f"G{first}", second=f"G{second}", path=path, nvlinks=nvlinks)


def pick(found: dict[str, Entry], *links: GpuLink, **wish: object) -> Choice:
    wanted = Wish(**{"gpu_count": 1, "required_mb": 100} | wish)  # type: ignore[arg-type]
    return choose(wanted, found, [uuid for uuid in found if uuid != RAM], ranks_of(links))


def test_the_fullest_gpu_that_is_enough_is_taken():
    assert pick(ledger(500, 300, 90, 120)).uuids == ("G3",)


def test_gpus_joined_by_nvlink_come_first_when_asked_for():
    links = (link(0, 1), link(0, 2), link(1, 2, nvlinks=4))
    free = ledger(100, 500, 500)

    assert pick(free, *links, gpu_count=2, prefer_nvlink=True).uuids == ("G1", "G2")
    assert "G0" in pick(free, *links, gpu_count=2).uuids


def test_without_nvlink_a_shared_switch_comes_before_a_shared_node_before_the_rest():
    links = [link(0, 1), link(1, 2, "NODE"), link(2, 3, "PIX"), link(0, 2), link(0, 3), link(1, 3)]
    free = ledger(500, 500, 500, 500)

    assert pick(free, *links, gpu_count=2, prefer_nvlink=True).uuids == ("G2", "G3")
    assert pick(ledger(500, 500, 500, 50), *links, gpu_count=2, prefer_nvlink=True).uuids == ("G1", "G2")


def test_gpus_that_fit_as_well_are_taken_where_they_are_connected():
    assert pick(ledger(500, 500, 500), link(0, 2, nvlinks=4), link(0, 1), link(1, 2), gpu_count=2).uuids == ("G0", "G2")


def test_a_refusal_names_what_each_gpu_lacks_and_what_would_fit():
    refused = pick(ledger(500, 300, 900), gpu_count=2, required_mb=600)

    assert (refused.fits, refused.uuids, refused.would_fit_mb, refused.would_fit_gpus) == (False, (), 500, 1)
    assert {each.device: each.missing_mb for each in refused.shortfalls} == {"G0": 100, "G1": 300}
    assert "1 of 2 GPUs have 600 MiB free" in refused.reason


def test_named_gpus_are_given_or_refused_as_named():
    assert pick(ledger(500, 300), uuids=("G1", "G0"), gpu_count=2).uuids == ("G1", "G0")
    assert not pick(ledger(500, 50, 900), uuids=("G0", "G1"), gpu_count=2).fits


def test_a_gpu_with_a_problem_is_not_given_and_the_problem_told():
    refused = pick(ledger(500, problem="Xid 79"))

    assert (refused.fits, refused.shortfalls[0].reason, refused.shortfalls[0].missing_mb) == (False, "Xid 79", 100)


def test_memory_alone_needs_no_gpu():
    assert pick(ledger(ram=800), gpu_count=0, required_mb=0, ram_mb=800).fits


def test_missing_memory_refuses_even_when_the_gpus_fit():
    refused = pick(ledger(500, ram=800), ram_mb=900)

    assert (refused.fits, [each.device for each in refused.shortfalls], refused.would_fit_mb) == (False, [RAM], 500)


def test_more_gpus_than_there_are_do_not_fit():
    assert not pick(ledger(500, 500), gpu_count=3).fits


def test_many_gpus_are_chosen_among_without_looking_at_every_set():
    assert len(pick(ledger(*range(500, 564)), gpu_count=16, prefer_nvlink=True).uuids) == 16


frees = st.lists(st.integers(0, 1000), min_size=1, max_size=8)


@given(frees, st.integers(1, 8), st.integers(1, 1000))
def test_it_fits_exactly_when_enough_gpus_have_enough(free: list[int], count: int, required: int):
    found = pick(ledger(*free), gpu_count=count, required_mb=required)

    assert found.fits == (sum(mb >= required for mb in free) >= count)
    assert len(set(found.uuids)) == (count if found.fits else 0)
    assert all(free[int(uuid[1:])] >= required for uuid in found.uuids)


@given(frees, st.integers(1, 8), st.integers(1, 1000))
def test_no_other_set_would_leave_larger_gpus_free(free: list[int], count: int, required: int):
    found = pick(ledger(*free), gpu_count=count, required_mb=required)
    if not found.fits:
        return

    def left(taken: set[int]) -> list[int]:
        return sorted((mb for number, mb in enumerate(free) if number not in taken), reverse=True)

    others = [
        set(others) for others in combinations(range(len(free)), count) if min(free[o] for o in others) >= required
    ]
    assert left({int(uuid[1:]) for uuid in found.uuids}) == max(left(other) for other in others)


@given(frees, st.integers(1, 8), st.integers(1, 1000))
def test_what_a_refusal_says_would_fit_does_fit(free: list[int], count: int, required: int):
    refused = pick(ledger(*free), gpu_count=count, required_mb=required)
    if refused.fits:
        return

    assert refused.would_fit_mb < required
    assert refused.would_fit_mb == 0 or pick(ledger(*free), gpu_count=count, required_mb=refused.would_fit_mb).fits
    assert (
        refused.would_fit_gpus == 0 or pick(ledger(*free), gpu_count=refused.would_fit_gpus, required_mb=required).fits
    )
