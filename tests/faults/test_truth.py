"""The count finds what it is there to find."""

from pathlib import Path
from typing import Any

import pytest

from tests.faults.truth import Count, Evidence, Lines, count, count_archived

RUN = "7-a"


def view(status: str = "completed", **changes: Any) -> dict[str, Any]:
    attempts = [{"outcome": "completed"}] if status == "completed" else []
    usual = {
        "work_id": "w1",
        "labels": {"name": "i1"},
        "status": status,
        "ended_at": "then",
        "attempts": attempts,
        "result": {"run": RUN},
        "error": None,
    }
    return usual | changes


def counted(
    folder: Path,
    now: dict[str, Any] | None,
    *others: dict[str, Any],
    lines: tuple[str, ...] = (f"begin i1 {RUN}", f"end i1 {RUN}"),
    before: dict[str, Any] | None = None,
    ids: tuple[str, ...] = ("w1",),
    mortal: tuple[int, ...] = (),
    poison: tuple[str, ...] = (),
) -> Count:
    path = folder / "lines"
    path.write_text("".join(f"{line}\n" for line in lines))
    return count(
        Evidence(
            names=["i1"],
            receipts={"i1": ids},
            before={"w1": before} if before else {},
            after={each["work_id"]: each for each in (now, *others) if each},
            lines=Lines(path).read(),
            mortal=mortal,
            poison=poison,
        )
    )


def killed(*nodes: str) -> list[dict[str, Any]]:
    return [{"outcome": "failed", "node_id": node, "error": {"code": "agent_restarted"}} for node in nodes]


def test_an_item_that_ended_and_stayed_so_counts_once(tmp_path: Path):
    found = counted(tmp_path, view(), before=view())

    assert (found.ended_once, found.lost, found.doubled, found.problems) == (1, 0, 0, [])


@pytest.mark.parametrize("now", [None, view("pending"), view("running"), view("retrying")])
def test_an_item_that_is_unknown_or_still_open_is_lost(tmp_path: Path, now: dict[str, Any] | None):
    assert counted(tmp_path, now).lost == 1


@pytest.mark.parametrize(
    "now",
    [
        view(attempts=[{"outcome": "completed"}] * 2),
        view(attempts=[]),
        view(result={"run": "7-of-nobody"}),
        view(result=None),
        view("dead"),
    ],
)
def test_an_end_with_another_number_of_outcomes_or_without_a_run_behind_it_is_doubled(tmp_path: Path, now: Any):
    found = counted(tmp_path, now)

    assert (found.ended_once, found.doubled) == (0, 1)


def test_an_end_that_changed_is_doubled(tmp_path: Path):
    assert counted(tmp_path, view(), before=view(ended_at="earlier")).doubled == 1


def test_two_items_of_one_submission_are_doubled(tmp_path: Path):
    assert counted(tmp_path, view(), view(work_id="w2")).doubled == 1
    assert counted(tmp_path, view(), ids=("w1", "w2")).doubled == 1


@pytest.mark.parametrize(
    ("now", "ended_once"),
    [
        (view("dead", error={"code": "poison"}, attempts=killed("n1", "n2", "n3")), 1),
        (view("dead", error={"code": "poison"}, attempts=killed("n1", "n2", "n2")), 0),
        (view("dead", error={"code": "died"}, attempts=killed("n1", "n2", "n3")), 0),
        (view("failed", error={"code": "poison"}, attempts=killed("n1", "n2", "n3")), 0),
        (view(), 0),
    ],
)
def test_a_poison_item_must_end_as_such_with_its_trail(tmp_path: Path, now: Any, ended_once: int):
    found = counted(tmp_path, now, poison=("i1",))

    assert (found.ended_once, found.doubled) == (ended_once, 1 - ended_once)


TWICE = (f"begin i1 {RUN}", f"end i1 {RUN}", "begin i1 8-b", "end i1 8-b")


def test_a_second_run_where_nothing_died_is_doubled(tmp_path: Path):
    assert counted(tmp_path, view(), lines=TWICE).doubled == 1


def test_a_second_run_of_a_process_that_died_or_after_a_failure_is_not(tmp_path: Path):
    assert counted(tmp_path, view(), lines=TWICE, mortal=(8,)).doubled == 0
    assert counted(tmp_path, view(), lines=("begin i1 8-b", "fail i1 8-b", *TWICE[:2])).doubled == 0


def test_a_line_that_is_not_written_to_its_end_is_read_later(tmp_path: Path):
    path = tmp_path / "lines"
    path.write_text(f"begin i1 {RUN}\nend i1")
    lines = Lines(path).read()
    assert lines.running({7}) == 1
    with path.open("a") as file:
        file.write(f" {RUN}\n")

    assert (lines.read().running({7}), lines.over) == (0, {"i1"})


@pytest.mark.parametrize(
    ("rows", "lost", "doubled"),
    [
        ([("w1", "completed", "2030-01-01T00:00:00.5")], 0, 0),
        ([], 1, 0),
        ([("w1", "completed", "2030-01-01T00:00:00.5")] * 2, 0, 1),
        ([("w1", "dead", "2030-01-01T00:00:00.5")], 0, 1),
        ([("w1", "completed", "2030-01-01T00:00:01")], 0, 1),
    ],
)
def test_what_ended_is_in_the_archive_once_and_as_it_ended(
    tmp_path: Path, rows: list[tuple[str, str, str]], lost: int, doubled: int
):
    told = Evidence(
        names=["i1"],
        receipts={"i1": ["w1"]},
        before={},
        after={"w1": view(ended_at="2030-01-01T00:00:00.500000Z")},
        lines=Lines(tmp_path / "none"),
        mortal=(),
    )
    found = Count()

    count_archived(found, told, rows)

    assert (found.lost, found.doubled, len(found.problems)) == (lost, doubled, lost + doubled)
