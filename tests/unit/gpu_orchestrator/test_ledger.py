"""What is free, from claims, what is measured, and what was known before."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gpu_orchestrator.ledger import reclaimed as reclaimed_entry
from services.gpu_orchestrator.ledger import refresh
from services.gpu_orchestrator.model import Claim, Device, Entry, Event, Process, Rules

RULES = Rules(foreign_hold_seconds=60, leak_grace_seconds=30, healthy_seconds=10, margin_mb=100)
EMPTY = Device(uuid="G", total_mb=10_000, used_mb=0, processes=())


def used(*processes: Process, other: int = 0) -> Device:
    return replace(EMPTY, used_mb=sum(each.used_mb or 0 for each in processes) + other, processes=processes)


def process(pid: int, mb: int | None, *of: str) -> Process:
    return Process(pid=pid, used_mb=mb, owners=of, command="engine")


def claim(mb: int, name: str = "r1") -> Claim:
    return Claim(reservation_id=name, device="G", claim_mb=mb)


def reclaimed(ledger: dict[str, Entry], claims: list[Claim]) -> dict[str, Entry]:
    return {"G": reclaimed_entry(ledger["G"], {each.reservation_id: each.claim_mb for each in claims})}


class Teller:
    """Refreshes one device again and again."""

    def __init__(self) -> None:
        self.ledger: dict[str, Entry] = {}

    def __call__(self, device: Device | None, *claims: Claim, at: float = 0.0) -> tuple[Entry, tuple[Event, ...]]:
        self.ledger, events = refresh(claims, [device] if device else [], self.ledger, at, RULES)
        return self.ledger["G"], events


def test_all_but_the_margin_and_what_the_driver_keeps_is_free_on_an_idle_gpu():
    entry, events = Teller()(replace(EMPTY, driver_mb=500))

    assert (entry.free_mb, events) == (9400, ())


def test_a_claim_counts_until_its_process_is_seen_and_then_the_larger_of_both():
    tell = Teller()

    free = [
        tell(EMPTY, claim(4000))[0].free_mb,
        tell(used(process(7, 1000, "r1")), claim(4000))[0].free_mb,
        tell(used(process(7, 5000, "r1")), claim(4000))[0].free_mb,
    ]

    assert free == [5900, 5900, 4900]


def test_a_process_above_its_claim_is_told_once_and_its_excess_protected():
    tell = Teller()

    first = tell(used(process(7, 5000, "r1")), claim(4000))[1]
    second = tell(used(process(7, 5000, "r1")), claim(4000))[1]

    assert ([event.kind for event in first], second) == (["over_claim"], ())


@pytest.mark.parametrize(("used_mb", "measured"), [(300, [300, 0]), (700, [400, 300]), (2000, [400, 1600])])
def test_a_process_with_two_claims_fills_one_after_the_other(used_mb: int, measured: list[int]):
    two = (claim(400, "r1"), claim(600, "r2"))
    entry, _ = Teller()(used(process(7, used_mb, "r1", "r2")), *two)

    assert [use.measured_mb for use in entry.uses.values()] == measured
    assert (entry.foreign_mb, entry.held_mb) == (0, max(1000, 400 + measured[1]))


def test_a_process_whose_other_reservation_holds_this_gpu_is_not_foreign_to_it():
    entry, _ = Teller()(used(process(7, 500, "r1", "r2")), claim(600, "r2"))

    assert (entry.foreign_mb, entry.ours_mb, entry.orphans) == (0, 500, ())


def test_the_unused_part_of_one_claim_does_not_cover_the_excess_of_another():
    entry, _ = Teller()(used(process(7, 3000, "r1")), claim(1000), claim(4000, "r2"))

    assert entry.free_mb == 10_000 - 100 - 3000 - 4000


def test_foreign_processes_and_what_nobody_is_told_to_use_are_kept_from_claims():
    entry, _ = Teller()(used(process(1, 2000), other=300), claim(1000))

    assert (entry.foreign_mb, entry.free_mb) == (2300, 6600)


def test_a_process_that_computes_and_draws_counts_once():
    device = replace(EMPTY, used_mb=500, processes=(process(1, 500), process(1, 500)))

    assert Teller()(device)[0].foreign_mb == 500


def test_a_desktop_that_breathes_is_held_at_its_most():
    tell = Teller()

    free = {tell(used(process(1, 900 if at % 2 else 300)), at=at)[0].free_mb for at in range(1, 300)}

    assert free == {9000}


def test_a_foreign_process_that_shrinks_for_good_gives_back_after_the_hold():
    tell = Teller()
    tell(used(process(1, 5000)), at=0)

    early = tell(used(process(1, 1000)), at=59)[0].foreign_mb
    late = tell(used(process(1, 1000)), at=60)[0].foreign_mb

    assert (early, late) == (5000, 1000)


def test_a_foreign_process_that_ends_gives_back_at_once():
    tell = Teller()
    tell(used(process(1, 5000)), at=0)

    assert tell(EMPTY, at=1)[0].foreign_mb == 0


def test_a_process_that_outlives_its_claim_is_leaked_after_a_grace_and_stays_protected():
    tell = Teller()
    engine = used(process(7, 3000, "r1"))
    tell(engine, claim(3000), at=0)
    still = used(process(7, 3000))

    soon, quiet = tell(still, at=10)
    late, events = tell(still, at=40)

    assert (soon.leaked_mb, quiet, soon.free_mb) == (0, (), 6900)
    assert (late.leaked_mb, late.free_mb) == (3000, 6900)
    assert [(event.kind, event.pid, event.reservation_id) for event in events] == [("leaked", 7, "r1")]
    assert tell(still, at=41)[1] == ()


def test_without_use_by_process_what_came_after_the_first_claim_is_ours():
    tell = Teller()
    silent = replace(EMPTY, used_mb=1000, processes=None)
    tell(silent)

    entry, _ = tell(replace(silent, used_mb=6000), claim(4000))

    assert (entry.attributed, entry.foreign_mb, entry.ours_mb, entry.held_mb) == (False, 1000, 5000, 5000)
    assert entry.free_mb == 10_000 - 100 - 1000 - 5000


def test_one_process_of_unknown_use_makes_all_use_unattributed():
    assert not Teller()(replace(EMPTY, used_mb=10, processes=(process(1, None),)))[0].attributed


def test_a_gpu_that_is_lost_keeps_its_claims_and_gives_nothing():
    tell = Teller()
    tell(EMPTY, claim(1000))

    entry, events = tell(None, claim(1000))

    assert (entry.claimed_mb, entry.given_mb) == (1000, 0)
    assert [event.kind for event in events] == ["unusable"]


def test_a_gpu_that_was_unwell_is_given_again_only_after_it_was_well_for_a_while():
    tell = Teller()
    tell(replace(EMPTY, problem="Xid 79"), at=0)

    watched, _ = tell(EMPTY, at=5)
    well, events = tell(EMPTY, at=10)

    assert (watched.given_mb, well.given_mb) == (0, 9900)
    assert [event.kind for event in events] == ["usable"]


def test_a_gpu_whose_size_is_unknown_gives_nothing():
    assert Teller()(replace(EMPTY, total_mb=None))[0].given_mb == 0


amounts = st.integers(0, 4000)
devices = st.builds(
    lambda ours, foreign, other: used(
        *(process(100 + number, mb, f"r{number}", *(("r0",) * (number > 1))) for number, mb in enumerate(ours)),
        *(process(number + 1, mb) for number, mb in enumerate(foreign)),
        other=other,
    ),
    st.lists(amounts, max_size=3),
    st.lists(amounts, max_size=3),
    amounts,
)
claim_lists = st.lists(amounts, max_size=4).map(lambda all_: [claim(mb, f"r{n}") for n, mb in enumerate(all_)])


@given(st.lists(st.tuples(devices, claim_lists), min_size=1, max_size=6))
def test_what_is_told_free_is_beside_everything_claimed_and_used(rounds: list[tuple[Device, list[Claim]]]):
    tell = Teller()
    for at, (device, claims) in enumerate(rounds):
        entry, _ = tell(device, *claims, at=float(at * 20))

        assert entry.free_mb is not None
        assert entry.held_mb >= entry.claimed_mb
        assert entry.held_mb + entry.foreign_mb >= (device.used_mb or 0)
        if entry.free_mb > 0:
            assert entry.free_mb + entry.held_mb + entry.foreign_mb + entry.margin_mb == 10_000


@given(devices, claim_lists, st.lists(amounts, max_size=10))
def test_claims_that_each_fit_what_is_free_never_exceed_the_gpu(device: Device, before: list[Claim], asked: list[int]):
    ledger, _ = refresh(before, [device], {}, 0.0, RULES)
    claims = list(before)
    free_at_first = ledger["G"].given_mb
    for number, mb in enumerate(asked):
        if mb <= ledger["G"].given_mb:
            claims.append(claim(mb, f"new{number}"))
            ledger = reclaimed(ledger, claims)

    assert sum(each.claim_mb for each in claims[len(before) :]) <= free_at_first


@given(devices, claim_lists, amounts)
def test_giving_back_an_unused_claim_restores_exactly_what_was_free(device: Device, before: list[Claim], mb: int):
    ledger, _ = refresh(before, [device], {}, 0.0, RULES)

    back = reclaimed(reclaimed(ledger, [*before, claim(mb, "new")]), before)

    assert back["G"].free_mb == ledger["G"].free_mb


@given(devices, claim_lists)
def test_giving_back_a_claim_does_not_free_what_its_process_was_just_seen_to_use(device: Device, claims: list[Claim]):
    ledger, _ = refresh(claims, [device], {}, 0.0, RULES)

    assert reclaimed(ledger, [])["G"].given_mb <= max(0, 10_000 - 100 - (device.used_mb or 0))


@given(devices, claim_lists)
def test_the_order_of_claims_does_not_matter(device: Device, claims: list[Claim]):
    one, _ = refresh(claims, [device], {}, 0.0, RULES)
    other, _ = refresh(claims[::-1], [device], {}, 0.0, RULES)

    assert one["G"].free_mb == other["G"].free_mb
