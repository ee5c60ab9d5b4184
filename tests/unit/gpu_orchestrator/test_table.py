"""The ledger for a person."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.contracts.gpu_orchestrator import (
    GpuState,
    GpuStates,
    Leak,
    LedgerEntry,
    LedgerUse,
    MemoryState,
    PressureLevel,
    Trend,
)
from libs.common.contracts.node_registry import Memory, MigDevice
from services.gpu_orchestrator.table import COLUMNS, Row, seen, widths
from tests.nodes import AT, gpu

WELL = LedgerEntry(total_mb=24564, ours_mb=2000, claimed_mb=8000, foreign_mb=900, free_mb=15000)
NO_RAM = MemoryState(node_id="n", at=AT, memory=Memory())


def states(*found: GpuState) -> GpuStates:
    return GpuStates(node_id="n", boot_id="b", at=AT, gpus=found)


def test_a_gpu_is_a_line_of_its_figures():
    line = seen(states(GpuState(gpu=gpu(0), processes=(), ledger=WELL)), NO_RAM).rows[0]

    assert line.cells[2:] == ("24564", "2000", "8000", "900", "15000", "0", "well")
    assert not line.bad


def test_what_is_not_known_is_a_question_mark():
    entry = LedgerEntry(attributed=False, problem="it is lost")
    told = seen(states(GpuState(gpu=gpu(0), processes=None, ledger=entry)), NO_RAM)

    assert told.rows[0].cells[2:] == ("?", "?", "0", "0", "?", "?", "it is lost")
    assert (told.rows[0].bad, told.notes) == (True, [])


def test_a_divided_gpu_is_followed_by_its_parts():
    divided = gpu(0, mig_devices=(MigDevice(uuid="MIG-1", name="NVIDIA GeForce RTX 4090 MIG 1g"),))
    told = seen(states(GpuState(gpu=divided, ledger=WELL, parts={"MIG-1": WELL})), NO_RAM)

    assert [line.cells[1] for line in told.rows] == ["NVIDIA GeForce RTX 4090", "  MIG 1g MIG-1", ""]


def test_leaks_and_who_uses_more_than_claimed_are_noted():
    entry = WELL.model_copy(
        update={
            "leaks": (Leak(pid=7, command="engine", reservation_id="r0", used_mb=700, age_seconds=40),),
            "uses": (LedgerUse(reservation_id="r1", claim_mb=100, measured_mb=400, over_claim=True),),
        }
    )

    assert seen(states(GpuState(gpu=gpu(0), ledger=entry)), NO_RAM).notes == [
        "GPU 0: process 7 (engine) leaks 700 MiB, for 40 s",
        "GPU 0: r1 uses 400 MiB under a claim of 100 MiB",
    ]


def test_memory_that_runs_out_is_told():
    trend = Trend(level=PressureLevel.CRITICAL, reason="3.0% are left")
    told = seen(states(), NO_RAM.model_copy(update={"ledger": WELL, "trend": trend}))

    assert (told.rows[0].cells[0], told.rows[0].cells[-1]) == ("RAM", "CRITICAL: 3.0% are left")
    assert told.rows[0].bad


ROWS = (
    Row(cells=("0", "NVIDIA H100 80GB HBM3", "81559", "0", "30000", "0", "50752", "12", "well")),
    Row(cells=("RAM", "", "24105", "137", "1000", "1119", "21474", "1", "CRITICAL: 4.0% are left")),
)


@pytest.mark.parametrize(
    ("width", "left_out"),
    [
        (200, []),
        (100, []),
        (80, ["Name"]),
        (60, ["Name", "Processes", "Ours"]),
        (40, ["Name", "Processes", "Ours", "Total", "Claimed"]),
        (1, ["Name", "Processes", "Ours", "Total", "Claimed", "Foreign"]),
    ],
)
def test_on_a_narrow_terminal_number_room_and_health_stay(width: int, left_out: list[str]):
    assert {name for place, name in enumerate(COLUMNS) if place not in widths(ROWS, width)} == set(left_out)


@given(st.integers(40, 250))
def test_no_line_is_wider_than_the_terminal_nor_a_column_than_what_is_in_it(width: int):
    shown = widths(ROWS, width)

    assert sum(shown.values()) + 3 * len(shown) + 1 <= width
    for place, wide in shown.items():
        wanted = max(len(COLUMNS[place]), *(len(row.cells[place]) for row in ROWS))
        assert wide <= wanted
        assert wide == wanted or COLUMNS[place] in ("Name", "Health")
