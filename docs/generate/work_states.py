"""`docs/reference/work-states.md`: the life of a work item, drawn by letting everything happen to one."""

import re
from collections.abc import Iterator
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, get_args

from docs.generate.markdown import code, page, table
from libs.common.contracts.work_log import ItemFact
from libs.common.contracts.work_marshaling import WorkError
from libs.common.contracts.work_marshaling import WorkItem as Submission
from services.work_marshaling.facts import apply
from services.work_marshaling.machine import decide
from services.work_marshaling.model import Event, Given, Policy, WorkItem

INTRODUCTION = """\
What can happen to an item in each state, as the queue decides it: this page is made by letting every event happen to an
item in every state it can reach. What is not listed changes nothing. Events carry the token of an attempt; that of an
earlier attempt can still complete an open item, but no longer fail it."""

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
POLICY = Policy(retry_max=1, retry_delay_seconds=1.0)
ERRORS = {
    "an error that may pass": WorkError(code="engine_failed", message="…"),
    "a final error": WorkError(code="engine_failed", message="…", retryable=False),
}
Arrow = tuple[str, str, str]


def work_states() -> str:
    arrows = sorted(_arrows())
    ends = sorted({after for _, _, after in arrows} - {before for before, _, _ in arrows})
    lines = [f"  {before} --> {after}: {_joined(before, after, arrows)}" for before, after in _pairs(arrows)]
    diagram = "\n".join(["```mermaid", "stateDiagram-v2", *lines, *(f"  {end} --> [*]" for end in ends), "```"])
    rows = [[code(before) if before != "[*]" else "", what, code(after)] for before, what, after in arrows]
    return page("States of a work item", INTRODUCTION, diagram, table(["from", "when", "to"], rows))


def _arrows() -> set[Arrow]:
    found: set[Arrow] = set()
    seen: set[tuple[str, int]] = set()
    reached: list[WorkItem | None] = [None]
    while reached:
        item = reached.pop()
        for what, event in _events(item):
            after = _after(item, event)
            if after is None or after == item:
                continue
            if item is None or after.status is not item.status:
                found.add(("[*]" if item is None else item.status.value, what, after.status.value))
            if (place := (after.status.value, len(after.attempts))) not in seen:
                seen.add(place)
                reached.append(after)
    return found


def _after(item: WorkItem | None, event: Any) -> WorkItem | None:
    for fact in decide(item, event, POLICY, NOW, 0.5):
        if isinstance(fact, get_args(ItemFact)):
            item = apply(item, fact)
    return item


def _events(item: WorkItem | None) -> Iterator[tuple[str, Any]]:
    """One of each kind, with everything that makes a difference."""
    tokens = [attempt.token for attempt in item.attempts] if item else []
    values = {
        "work_id": "item-1",
        "sequence": 1,
        "index": 0,
        "at": item.retry_at if item else NOW,
        "digest": "",
        "item": Submission(work_type="inference", max_attempts=2),
        "payload": "{}",
        "payload_bytes": 2,
        "node_id": "node-1",
        "out_seq": 1,
        "result_bytes": 0,
        "detail": "",
        "reason": "",
    }
    for kind in get_args(Event):
        names = {field.name for field in fields(kind)}
        for token in _tokens(kind, tokens):
            for told, error in ERRORS.items() if "error" in names else [("", None)]:
                known = values | {"token": token, "error": error}
                event = kind(**{name: value for name, value in known.items() if name in names})
                yield f"{_words(kind)} with {told}" if told else _words(kind), event


def _tokens(kind: type, issued: list[str]) -> list[str]:
    """For a new attempt a new one; else each that was issued."""
    fresh = [f"token-{len(issued) + 1}"]
    return fresh if kind is Given else issued or fresh


def _words(kind: type) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind.__name__).lower()


def _pairs(arrows: list[Arrow]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((before, after) for before, _, after in arrows))


def _joined(before: str, after: str, arrows: list[Arrow]) -> str:
    return ", ".join(what for start, what, end in arrows if (start, end) == (before, after))
