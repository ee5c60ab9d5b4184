"""Which nodes match a query, and why not."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.contracts.node_registry import (
    Engine,
    EngineState,
    GpuBeat,
    NodeQuery,
    NodeState,
    NodeWorkload,
    Tier,
)
from libs.common.errors import Malformed
from services.node_registry import facts
from services.node_registry.machine import born
from services.node_registry.matching import read, refusals
from services.node_registry.model import Node
from tests.nodes import AT, announced, beat, gpu


def node(*gpus: Any, beats: tuple[GpuBeat, ...] = (), models: tuple[str, ...] = (), **changes: Any) -> Node:
    told = facts.announced(announced("node-1", *gpus, **changes))
    engines = tuple(
        Engine(engine_id=name, kind="llama.cpp", model_name=name, state=EngineState.READY, device="cpu")
        for name in models
    )
    return Node(
        announced=told,
        life=born(boot_id="boot-1", heartbeat_seconds=5.0, now=0.0),
        pulse=facts.pulse(told, beat(gpus=beats)) if beats else facts.rest(told),
        workload=facts.workload(
            NodeWorkload(node_id="node-1", boot_id="b", at=AT, slots=1, free_slots=1, engines=engines)
        ),
    )


def why_not(machine: Node, **query: Any) -> list[str]:
    return refusals(machine, read(NodeQuery.model_validate(query)))


TWO = node(
    gpu(0), gpu(1, name="NVIDIA GeForce RTX 3060", vram_total_mb=12288, vram_free_mb=4000, compute_capability="8.6")
)
BARE = node()


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"requires_gpu": True},
        {"requires_gpu": False},
        {"tier": "gpu_peer"},
        {"min_tier": "gpu_peer"},
        {"min_tier": "Gpu_Infra"},
        {"min_tier": "CPU_ONLY"},
        {"online_only": True},
        {"states": ["online", "SUSPECT"]},
        {"node_ids": ["node-1", "other"]},
        {"platform": "cuda"},
        {"gpu_model": "rtx 4090"},
        {"compute_capability": "8.6", "min_gpu_count": 2},
        {"compute_capability": "8.9"},
        {"min_gpu_count": 2},
        {"min_vram_mb_per_gpu": 24000},
        {"min_gpu_count": 2, "min_vram_mb_per_gpu": 11000},
        {"min_total_vram_mb": 35000},
        {"min_free_vram_mb": 23000},
        {"min_ram_mb": 65536, "min_cpu_threads": 16},
    ],
)
def test_a_machine_with_two_gpus_matches(query: dict[str, Any]):
    assert why_not(TWO, **query) == []


@pytest.mark.parametrize(
    ("query", "clause"),
    [
        ({"tier": "AI_FACTORY"}, "tier"),
        ({"min_tier": "AI_FACTORY"}, "min_tier"),
        ({"states": ["OFFLINE"]}, "states"),
        ({"node_ids": ["other"]}, "node_ids"),
        ({"platform": "ROCM"}, "platform"),
        ({"labels": {"room": "cellar"}}, "labels"),
        ({"model_name": "llama"}, "model_name"),
        ({"gpu_model": "H100"}, "gpu_model"),
        ({"compute_capability": "9.0"}, "compute_capability"),
        ({"min_gpu_count": 3}, "min_gpu_count"),
        ({"min_gpu_count": 2, "min_vram_mb_per_gpu": 24000}, "min_vram_mb_per_gpu"),
        ({"min_gpu_count": 2, "min_free_vram_mb": 5000}, "min_free_vram_mb"),
        ({"min_total_vram_mb": 50000}, "min_total_vram_mb"),
        ({"min_ram_mb": 65537}, "min_ram_mb"),
        ({"min_cpu_threads": 17}, "min_cpu_threads"),
    ],
)
def test_the_clause_that_excludes_it_is_named(query: dict[str, Any], clause: str):
    reasons = why_not(TWO, **query)

    assert len(reasons) == 1
    assert clause in reasons[0]


def test_a_machine_without_gpu_does_not_match_what_requires_one():
    assert why_not(BARE, requires_gpu=True) == ["requires_gpu: it has no GPU that works"]
    assert why_not(BARE, requires_gpu=False) == []


def test_a_gpu_that_broke_since_the_announcement_does_not_count():
    broken = node(gpu(0), beats=(GpuBeat(uuid="GPU-0", healthy=False),))

    assert why_not(broken, requires_gpu=True) == ["requires_gpu: it has no GPU that works"]


def test_free_memory_is_that_of_the_last_heartbeat():
    full = node(gpu(0), beats=(GpuBeat(uuid="GPU-0", vram_free_mb=100),))

    assert why_not(full, min_free_vram_mb=20000) != []
    assert why_not(full, min_free_vram_mb=100) == []


def test_unified_memory_counts_as_the_gpus():
    shared = node(gpu(0, name="NVIDIA GB10", unified_memory=True, vram_total_mb=None, vram_free_mb=None))

    assert why_not(shared, min_vram_mb_per_gpu=65536, min_free_vram_mb=60000) == []
    assert why_not(shared, min_free_vram_mb=60001) != []


def test_memory_that_is_not_known_satisfies_no_demand():
    silent = node(gpu(0, vram_total_mb=None, vram_free_mb=None))

    assert "an unknown amount" in why_not(silent, min_vram_mb_per_gpu=1)[0]


def test_a_loaded_model_and_labels_are_found():
    serving = node(models=("tiny",), labels={"room": "cellar"})

    assert why_not(serving, model_name="tiny", labels={"room": "cellar"}) == []


@pytest.mark.parametrize("field", ["tier", "min_tier", "platform", "sort"])
def test_a_name_that_does_not_exist_is_refused_with_what_is_allowed(field: str):
    with pytest.raises(Malformed, match=f"^{field}: 'nonsense' is none of ") as caught:
        read(NodeQuery.model_validate({field: "nonsense"}))

    assert caught.value.details["field"] == field


def test_an_unknown_state_is_refused():
    with pytest.raises(Malformed, match="ONLINE, SUSPECT, OFFLINE"):
        read(NodeQuery(states=("asleep",)))


@pytest.mark.parametrize("least", list(Tier))
@pytest.mark.parametrize("tier", list(Tier))
def test_min_tier_means_this_tier_or_better(tier: Tier, least: Tier):
    order = ["AI_FACTORY", "GPU_PEER", "GPU_INFRA", "CPU_ONLY"]

    matches = why_not(node(tier=tier), min_tier=least.lower()) == []

    assert matches == (order.index(tier) <= order.index(least))


def test_a_node_that_is_not_online_says_why():
    gone = replace(BARE, life=replace(BARE.life, state=NodeState.SUSPECT, reason="silent for 20 s"))

    assert why_not(gone, online_only=True) == ["online_only: it is SUSPECT (silent for 20 s)"]


WORDS = ("free_vram_mb", "free_ram_mb", "load_ratio")
KNOWN = st.none() | st.integers(0, 3)


@given(known=st.lists(KNOWN, max_size=12), word=st.sampled_from(WORDS), down=st.booleans(), data=st.data())
def test_the_first_so_many_are_those_of_all_in_order(
    known: list[int | None], word: str, down: bool, data: st.DataObject
):
    nodes = {f"node-{number:02}": _numbered(f"node-{number:02}", word, value) for number, value in enumerate(known)}
    shuffled = data.draw(st.permutations(list(nodes.values())))
    count = data.draw(st.integers(0, len(known) + 1))

    first = read(NodeQuery(sort=f"{'-' if down else ''}{word}")).order.first(shuffled, count)

    def place(node_id: str) -> tuple[bool, int, str]:
        value = known[int(node_id[-2:])]
        return value is None, 0 if value is None else -value if down else value, node_id

    assert [each.pulse.machine.node_id for each in first] == sorted(nodes, key=place)[:count]


def _numbered(node_id: str, word: str, value: int | None) -> Node:
    machine = replace(BARE.pulse.machine, node_id=node_id, most_free_vram_mb=None, ram_free_mb=None)
    if word == "load_ratio":
        return replace(BARE, pulse=replace(BARE.pulse, machine=machine, load_ratio=value))
    field = {"free_vram_mb": "most_free_vram_mb", "free_ram_mb": "ram_free_mb"}[word]
    machine = replace(machine, **{field: value})
    return replace(BARE, announced=replace(BARE.announced, machine=machine), pulse=replace(BARE.pulse, machine=machine))
