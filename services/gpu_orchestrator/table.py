"""The ledger for a person: a line for each GPU, each part of one, and the RAM."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from libs.common.contracts.gpu_orchestrator import GpuState, GpuStates, LedgerEntry, MemoryState, PressureLevel, Trend

COLUMNS = ("GPU", "Name", "Total", "Ours", "Claimed", "Foreign", "Free", "Processes", "Health")
HEAD = "MiB"
NAME, HEALTH = COLUMNS.index("Name"), COLUMNS.index("Health")
LEAST_NAME, LEAST_HEALTH, BESIDE = 8, 12, 3
"""Letters, and what a column takes beside them."""
LEFT_OUT = ("Name", "Processes", "Ours", "Total", "Claimed", "Foreign")
"""In which order columns give way on a narrow terminal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    cells: tuple[str, ...]
    bad: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A ledger as it was at one moment. `notes`: what does not fit into a line."""

    node_id: str
    at: datetime
    rows: Sequence[Row]
    notes: Sequence[str]


def seen(states: GpuStates, memory: MemoryState) -> Seen:
    return Seen(node_id=states.node_id, at=states.at, rows=rows(states, memory), notes=notes(states, memory))


def rows(states: GpuStates, memory: MemoryState) -> Sequence[Row]:
    """In the order of `COLUMNS`. Unknown is `?`."""
    return [*(row for state in states.gpus for row in _gpu(state)), _ram(memory)]


def widths(table: Sequence[Row], width: int) -> Mapping[int, int]:
    """Which columns are shown on a terminal so wide, and how wide each: names are cut, health is folded."""
    told = [COLUMNS, *(row.cells for row in table)]
    wanted = {place: max(len(cells[place]) for cells in told) for place in range(len(COLUMNS))}
    least = wanted | {NAME: min(wanted[NAME], LEAST_NAME), HEALTH: min(wanted[HEALTH], LEAST_HEALTH)}
    for name in LEFT_OUT:
        if _together(least) <= width:
            break
        del least[COLUMNS.index(name)]
    for place in (HEALTH, NAME):
        if place in least:
            least[place] = min(wanted[place], least[place] + max(0, width - _together(least)))
    return least


def _together(columns: Mapping[int, int]) -> int:
    return sum(columns.values()) + BESIDE * len(columns) + 1


def notes(states: GpuStates, memory: MemoryState) -> Sequence[str]:
    told = [f"{each.source}: {each.message}" for each in (*states.problems, *memory.problems)]
    for entry, name in _entries(states, memory):
        told.extend(
            f"{name}: process {leak.pid} ({leak.command}) leaks {leak.used_mb} MiB, for {leak.age_seconds:.0f} s"
            for leak in entry.leaks
        )
        told.extend(
            f"{name}: {use.reservation_id} uses {use.measured_mb} MiB under a claim of {use.claim_mb} MiB"
            for use in entry.uses
            if use.over_claim
        )
        if not entry.attributed and entry.problem is None:
            told.append(f"{name}: use by process is not told; ours is what came since the first claim")
    return told


def _entries(states: GpuStates, memory: MemoryState) -> Iterator[tuple[LedgerEntry, str]]:
    for state in states.gpus:
        if state.ledger is not None and not state.parts:
            yield state.ledger, f"GPU {state.gpu.index}"
        yield from ((entry, f"GPU {state.gpu.index} {uuid}") for uuid, entry in state.parts.items())
    if memory.ledger is not None:
        yield memory.ledger, "RAM"


def _gpu(state: GpuState) -> Iterator[Row]:
    users = "?" if state.processes is None else str(len(state.processes))
    yield _row(str(state.gpu.index), state.gpu.name, state.ledger, users, state.trend)
    names = {part.uuid: part.name.removeprefix(state.gpu.name).strip() for part in state.gpu.mig_devices}
    for uuid, entry in state.parts.items():
        yield _row("", f"  {names.get(uuid, '')} {uuid}", entry, "?", None)


def _ram(memory: MemoryState) -> Row:
    entry = memory.ledger
    users = "?" if entry is None else str(len(entry.uses))
    return _row("RAM", "", entry, users, memory.trend)


def _row(number: str, name: str, entry: LedgerEntry | None, users: str, trend: Trend | None) -> Row:
    if entry is None:
        return Row(cells=(number, name, *("?",) * 5, users, "not measured yet"), bad=True)
    sizes = (entry.total_mb, entry.ours_mb, entry.claimed_mb, entry.foreign_mb, entry.free_mb)
    pressed = trend is not None and trend.level != PressureLevel.OK
    health = entry.problem or (f"{trend.level}: {trend.reason}" if trend is not None and pressed else "well")
    cells = (number, name, *("?" if size is None else str(size) for size in sizes), users, health)
    return Row(cells=cells, bad=entry.problem is not None or pressed)
