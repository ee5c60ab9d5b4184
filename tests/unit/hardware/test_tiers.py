"""What class of machine this is."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.contracts.node_registry import Gpu, Memory, Tier
from libs.hardware.tiers import ORDER, better_or_equal, classify
from tests.nodes import gpu, inventory


def of(name: str, total: int | None, reserved: int | None, capability: str | None, **changes: Any) -> Gpu:
    return gpu(
        0,
        name=name,
        vram_total_mb=total,
        vram_reserved_mb=reserved,
        compute_capability=capability,
        **changes,
    )


@pytest.mark.parametrize(
    ("card", "tier"),
    [
        (of("NVIDIA H100 80GB HBM3", 81559, 551, "9.0"), Tier.AI_FACTORY),
        (of("NVIDIA A100-PCIE-40GB", 40960, 550, "8.0"), Tier.AI_FACTORY),
        (of("NVIDIA GeForce RTX 5090", 32607, 480, "12.0"), Tier.AI_FACTORY),
        (of("NVIDIA L40S", 46068, 500, "8.9"), Tier.AI_FACTORY),
        (of("AMD Instinct MI300X", 196592, None, "gfx942", vendor="amd"), Tier.AI_FACTORY),
        (of("NVIDIA GeForce RTX 4090", 24564, 464, "8.9"), Tier.GPU_PEER),
        (of("NVIDIA GeForce RTX 3090", 24576, 300, "8.6"), Tier.GPU_PEER),
        (of("NVIDIA RTX A5000", 24564, 450, "8.6"), Tier.GPU_PEER),
        (of("NVIDIA L4", 23034, 480, "8.9"), Tier.GPU_PEER),
        (of("AMD Radeon RX 7900 XTX", 24560, None, "gfx1100", vendor="amd"), Tier.GPU_PEER),
        (of("Tesla V100-SXM2-32GB", 32768, 500, "7.0"), Tier.GPU_PEER),
        (of("AMD Instinct MI50", 32752, None, "gfx906", vendor="amd"), Tier.GPU_PEER),
        (of("NVIDIA GeForce RTX 4070", 12282, 400, "8.9"), Tier.GPU_INFRA),
        (of("NVIDIA GeForce RTX 3060", 12288, 300, "8.6"), Tier.GPU_INFRA),
        (of("Tesla T4", 15360, 448, "7.5"), Tier.GPU_INFRA),
        (of("NVIDIA of tomorrow", None, None, "13.0"), Tier.GPU_INFRA),
        (of("NVIDIA unknown to its driver", 81559, 551, None), Tier.GPU_PEER),
    ],
    ids=lambda value: value.name if isinstance(value, Gpu) else str(value),
)
def test_a_card_makes_its_machine_what_it_is(card: Gpu, tier: Tier):
    verdict = classify(inventory(card))

    assert verdict.tier is tier
    assert card.name in verdict.reasons[0]


def test_without_a_gpu_it_is_cpu_only():
    assert classify(inventory()).tier is Tier.CPU_ONLY


def test_the_best_gpu_decides():
    cards = (of("RTX 3060", 12288, 300, "8.6"), of("H100", 81559, 551, "9.0"), of("RTX 4090", 24564, 464, "8.9"))

    assert classify(inventory(*cards)).tier is Tier.AI_FACTORY


def test_a_broken_gpu_is_not_counted_and_that_is_said():
    broken = of("H100", 81559, 551, "9.0", healthy=False, problem="Xid 79")

    verdict = classify(inventory(broken))

    assert verdict.tier is Tier.CPU_ONLY
    assert "Xid 79" in verdict.reasons[1]


@pytest.mark.parametrize(
    ("ram", "tier"), [(122 * 1024, Tier.AI_FACTORY), (24 * 1024, Tier.GPU_PEER), (None, Tier.GPU_INFRA)]
)
def test_a_gpu_that_shares_the_machines_memory_is_judged_by_it(ram: int | None, tier: Tier):
    card = of("NVIDIA GB10", None, None, "12.1", unified_memory=True)

    assert classify(inventory(card, memory=Memory(total_mb=ram))).tier is tier


def test_the_owners_word_counts_more():
    verdict = classify(inventory(), override=Tier.GPU_PEER)

    assert verdict.tier is Tier.GPU_PEER
    assert "owner" in verdict.reasons[0]


sizes = st.one_of(st.none(), st.integers(0, 300_000))
cards = st.builds(
    lambda total, reserved, capability, healthy: of("card", total, reserved, capability, healthy=healthy),
    sizes,
    sizes,
    st.sampled_from((None, "6.1", "7.5", "8.0", "8.9", "9.0", "12.1", "gfx906", "gfx942", "gfx1100", "nonsense")),
    st.booleans(),
)


@given(st.lists(cards, max_size=8))
def test_every_machine_has_a_tier_with_a_reason(found: list[Gpu]):
    verdict = classify(inventory(*found))

    assert all(verdict.reasons)
    assert (verdict.tier is Tier.CPU_ONLY) == (not any(card.healthy for card in found))


@given(st.lists(cards, max_size=8), cards)
def test_one_more_gpu_never_makes_a_machine_worse(found: list[Gpu], more: Gpu):
    assert better_or_equal(classify(inventory(*found, more)).tier, classify(inventory(*found)).tier)


@given(st.lists(cards, max_size=8))
def test_the_order_of_the_gpus_does_not_matter(found: list[Gpu]):
    assert classify(inventory(*found)).tier is classify(inventory(*reversed(found))).tier


@given(st.integers(0, 300_000), st.integers(0, 300_000))
def test_more_memory_never_makes_a_gpu_worse(one: int, other: int):
    less, more = sorted((one, other))
    tiers = [classify(inventory(of("card", size, 0, "8.9"))).tier for size in (less, more)]

    assert ORDER.index(tiers[1]) <= ORDER.index(tiers[0])
