"""How fast the queue decides who gets what, without NATS and disk: the decision alone must never be what is slow.

`python -m benchmarks.scheduling`: items are assigned in turns, as work marshaling does it, and each turn's leases end
before the next. Assignments per second, the best of three, with more and more items pending, nodes and submitters.
"""

import sys
import time
from datetime import UTC, datetime

from libs.common.contracts.node_registry import NodeWorkload
from libs.common.contracts.work_requirements import Requirements
from services.work_marshaling.leases import Leases
from services.work_marshaling.model import Spec, WorkItem
from services.work_marshaling.nodes import Nodes
from services.work_marshaling.scheduler import Queue

NOW = datetime(2030, 1, 1, tzinfo=UTC)
SLOTS = 512
MEASURED = 20_000
PER_TURN = 500


def rate(pending: int, node_count: int, submitters: int, per_turn: int = PER_TURN) -> float:
    """Assignments per second while so many items stay pending."""
    nodes = Nodes(silence_seconds=30)
    for number in range(node_count):
        slots = max(1, SLOTS // node_count)
        told = {"node_id": f"n{number}", "boot_id": "b", "at": NOW, "slots": slots, "free_slots": slots}
        nodes.hear_workload(NodeWorkload.model_validate(told | {"work_types": ("noop",)}), 0.0)
    queue, leases = Queue(ageing_seconds=300.0, poison_nodes=3), Leases()
    for number in range(pending):
        queue.add(_item(number, submitters))
    given = 0
    spent = 0.0
    while given < MEASURED:
        started = time.perf_counter()
        choices = queue.choose(nodes, leases.free(nodes), now=NOW.timestamp() + given / 1000, most=per_turn)
        for choice in choices:
            leases.open(choice.work_id, "t", choice.node_id, "noop", now=0.0, seconds=30.0, most_seconds=300.0)
        spent += time.perf_counter() - started
        for choice in choices:
            leases.close(choice.work_id)
            queue.add(_item(pending + given, submitters))
            given += 1
    return given / spent


def _item(number: int, submitters: int) -> WorkItem:
    spec = SPEC._replace(priority=number % 10, submitter=f"s{number % submitters}" if submitters > 1 else None)
    return WorkItem(work_id=f"w{number}", sequence=number + 1, index=0, submitted_at=NOW, digest="", spec=spec)


SPEC = Spec(
    work_type="noop",
    model_name=None,
    priority=5,
    requirements=Requirements(),
    timeout_seconds=300.0,
    deadline=None,
    not_before=None,
    max_attempts=4,
    retry_delay_seconds=5.0,
    labels=(),
    submitter=None,
    payload=None,
    payload_bytes=0,
)


def main() -> None:
    print(f"{'pending':>9} {'nodes':>6} {'submitters':>11} {'a turn':>7} {'assignments/s':>14}")
    for pending in (1_000, 100_000):
        for nodes, submitters, per_turn in ((1, 1, PER_TURN), (200, 1, PER_TURN), (200, 100, PER_TURN), (200, 1, 5)):
            best = max(rate(pending, nodes, submitters, per_turn) for _ in range(3))
            print(f"{pending:>9,} {nodes:>6} {submitters:>11} {per_turn:>7} {best:>14,.0f}")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
