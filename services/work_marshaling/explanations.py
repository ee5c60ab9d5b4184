"""What is asked about an item that does not run."""

from libs.common.contracts.work_explained import WorkExplained
from libs.common.contracts.work_marshaling import WorkLookup, WorkStatus
from libs.common.contracts.work_records import Finished
from services.work_marshaling.asking import Asking
from services.work_marshaling.explaining import explained
from services.work_marshaling.leading import Leading
from services.work_marshaling.matching import wanted
from services.work_marshaling.model import WorkItem
from services.work_marshaling.term import Term

SHOWN_NODES = 200


class Explanations:
    """Needs the leader; `Unavailable` says that this instance is not it now."""

    def __init__(self, *, leading: Leading, asking: Asking) -> None:
        self._leading = leading
        self._asking = asking

    async def explain(self, asked: WorkLookup) -> WorkExplained:
        """Raises `NotFound`, or why the item was refused."""
        found = await self._asking.one(asked)
        term = self._leading.present.term
        if isinstance(found, Finished) or not found.open:
            why = f"it has ended: it is {found.status.value}"
            priority = found.item.priority if isinstance(found, Finished) else found.spec.priority
            return WorkExplained(
                work_id=found.work_id, status=found.status, why=why, priority=priority, queued=len(term.queue)
            )
        return self._open(found, term)

    def _open(self, item: WorkItem, term: Term) -> WorkExplained:
        priority = item.spec.priority
        told = WorkExplained(
            work_id=item.work_id, status=item.status, why=_why(item), priority=priority, queued=len(term.queue)
        )
        if item.status not in (WorkStatus.PENDING, WorkStatus.RETRYING):
            return told
        asked = wanted(item, term.rules.policy.poison_nodes)
        free = term.leases.free(term.nodes)
        known = term.nodes.all()
        found = explained(
            asked, known, lambda asked, node: term.queue.now_taken(asked, node, term.nodes, free), most=SHOWN_NODES
        )
        stands = term.queue.stands(item.work_id, term.calendar())
        update: dict[str, object] = {
            "nodes": found.nodes,
            "nodes_known": len(known),
            "smallest_change": found.smallest_change,
            "unsatisfiable_now": term.possible.why_not(asked),
        }
        if stands is not None:
            ahead = f"{stands.position - 1} items are before it" if stands.position > 1 else "it is next"
            why = f"no node takes it now, and {ahead}" if found.smallest_change is not None else ahead
            update |= {"why": f"it waits: {why}", "effective_priority": stands.level, "position": stands.position}
            update["waited_seconds"] = round(stands.waited_seconds, 3)
        return told.model_copy(update=update)


def _why(item: WorkItem) -> str:
    live = item.live
    if live is not None:
        return f"it is {item.status.value} on {live.node_id}"
    if item.retry_at is not None:
        failed = item.attempts[-1].error if item.attempts else None
        because = f" after {failed.code}: {failed.message[:200]}" if failed is not None else ""
        return f"it waits for its next attempt until {item.retry_at.isoformat()}{because}"
    if item.spec.not_before is not None:
        return f"it is not to run before {item.spec.not_before.isoformat()}"
    return "it is about to be queued"
