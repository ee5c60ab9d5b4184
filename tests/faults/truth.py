"""What really happened: the receipts that submitters hold, and the lines that the jobs wrote."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

POISON_NODES = 3
DEATHS = frozenset({"agent_restarted", "died"})
ENDED = frozenset({"completed", "failed", "dead", "cancelled"})


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one job's body."""

    name: str
    run: str

    @property
    def pid(self) -> int:
        return int(self.run.split("-")[0])


class Lines:
    """The file that the jobs append to, read as it grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.began: dict[str, list[Run]] = defaultdict(list)
        self.ended: set[str] = set()
        self.failed: set[str] = set()
        self.over: set[str] = set()
        self.open: dict[str, Run] = {}
        self._offset = 0

    def read(self) -> "Lines":
        if not self.path.exists():
            return self
        with self.path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.decode().splitlines():
            self._take(*line.split(" "))
        return self

    def _take(self, what: str, name: str, run: str) -> None:
        if what == "begin":
            self.open[run] = Run(name, run)
            self.began[name].append(self.open[run])
        else:
            (self.ended if what == "end" else self.failed).add(run)
            self.open.pop(run, None)
            if what == "end":
                self.over.add(name)

    def running(self, alive: Collection[int]) -> int:
        """How many jobs are in the middle of it, in processes that live."""
        return sum(run.pid in alive for run in self.open.values())


@dataclass(kw_only=True)
class Count:
    """What became of the items. `problems` tells the first few that did not end as they should."""

    submitted: int = 0
    accepted: int = 0
    ended_once: int = 0
    completed: int = 0
    dead: int = 0
    lost: int = 0
    doubled: int = 0
    ran_again: int = 0
    archived: int = 0
    problems: list[str] = field(default_factory=list)

    def problem(self, text: str) -> None:
        if len(self.problems) < 20:
            self.problems.append(text)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """`receipts` are the ids that a submitter was promised, by item name; `before` is what was seen of ended items
    earlier, `after` every item as it is known now, by id. `mortal` are the processes that died or were fenced.
    `results_go`: results were pushed out of their stream, as is documented; then a run of the item must have ended.
    """

    names: Collection[str]
    receipts: Mapping[str, Collection[str]]
    before: Mapping[str, Mapping[str, Any]]
    after: Mapping[str, Mapping[str, Any]]
    lines: Lines
    mortal: Collection[int]
    poison: Collection[str] = ()
    results_go: bool = False


def count(told: Evidence) -> Count:
    """Lost: accepted and never ended. Doubled: two counted outcomes, an outcome that changed, two items of one
    submission, an outcome without a run of the job, or a second run where nothing had died or been fenced."""
    found = Count(submitted=len(told.names), accepted=len(told.receipts))
    by_name: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for view in told.after.values():
        by_name[view["labels"].get("name", "")].append(view)
    for name, ids in told.receipts.items():
        _one(found, told, name, set(ids), by_name.get(name, []))
    for name, runs in told.lines.began.items():
        found.ran_again += len(runs) > 1
        unexplained = [run for run in runs if run.pid not in told.mortal and run.run not in told.lines.failed]
        if len(unexplained) > 1:
            found.doubled += 1
            found.problem(f"{name} ran {len(runs)} times, {len(unexplained)} of them where nothing had died")
    return found


def count_archived(found: Count, told: Evidence, rows: Sequence[tuple[str, str, str]]) -> None:
    """`rows` are id, status and end (UTC, ISO 8601) of what the archive has: each end once, and as it was told.

    Lost: ended and not archived. Doubled: archived twice, or as something else.
    """
    by_id: dict[str, list[tuple[str, datetime]]] = defaultdict(list)
    for work_id, status, ended_at in rows:
        by_id[work_id].append((status, datetime.fromisoformat(ended_at).replace(tzinfo=UTC)))
    for work_id in {each for ids in told.receipts.values() for each in ids}:
        view = told.after.get(work_id)
        if view is None or view["status"] not in ENDED:
            continue  # lost already
        wanted = (view["status"], datetime.fromisoformat(view["ended_at"]))
        archived = by_id[work_id]
        if archived != [wanted]:
            found.lost += not archived
            found.doubled += bool(archived)
            found.problem(f"{work_id}: ended as {wanted}, in the archive as {archived}")
    found.archived = len(by_id)


def _one(found: Count, told: Evidence, name: str, ids: set[str], views: list[Mapping[str, Any]]) -> None:
    if len(ids) > 1 or len(views) > 1:
        found.doubled += 1
        found.problem(f"{name} became {len(views)} items, receipts name {sorted(ids)}")
        return
    (work_id,) = ids
    view = told.after.get(work_id)
    if view is None or view["status"] not in ENDED:
        found.lost += 1
        found.problem(f"{work_id} ({name}): {'unknown' if view is None else view['status']}")
        return
    wrong = _wrong_end(told, view)
    if wrong:
        found.doubled += 1
        found.problem(f"{work_id} ({name}): {wrong}")
        return
    found.ended_once += 1
    found.completed += view["status"] == "completed"
    found.dead += view["status"] == "dead"


def _wrong_end(told: Evidence, view: Mapping[str, Any]) -> str | None:
    earlier = told.before.get(view["work_id"])
    if told.results_go and view["result"] is None and view["labels"]["name"] in told.lines.over:
        view = {**view, "result": {"run": next(iter(_runs(told, view)))}}
        earlier = None if earlier is None else {**earlier, "result": view["result"]}
    if earlier is not None and _end(earlier) != _end(view):
        return f"ended as {_end(earlier)}, is now {_end(view)}"
    counted = [attempt for attempt in view["attempts"] if attempt["outcome"] == "completed"]
    wanted = 1 if view["status"] == "completed" else 0
    if len(counted) != wanted:
        return f"{view['status']} with {len(counted)} completed attempts"
    name = view["labels"]["name"]
    if wanted and (view["result"] or {}).get("run") not in told.lines.ended:
        return f"completed by {view['result']}, but no job ended that says so"
    if name in told.poison:
        return _wrong_death(view)
    if not wanted:
        return f"{view['status']}: {view['error']}"
    return None


def _wrong_death(view: Mapping[str, Any]) -> str | None:
    """Of a poison item."""
    nodes = {attempt["node_id"] for attempt in view["attempts"] if (attempt.get("error") or {}).get("code") in DEATHS}
    named = (view["error"] or {}).get("code") == "poison"
    if view["status"] == "dead" and named and len(nodes) >= POISON_NODES:
        return None
    return f"{view['status']} with the error {view['error']} after the deaths of {sorted(nodes)}"


def _runs(told: Evidence, view: Mapping[str, Any]) -> list[str]:
    """Runs of this item that wrote their last line."""
    return [run.run for run in told.lines.began[view["labels"]["name"]] if run.run in told.lines.ended]


def _end(view: Mapping[str, Any]) -> tuple[object, ...]:
    return view["status"], view["ended_at"], str(view["result"])
