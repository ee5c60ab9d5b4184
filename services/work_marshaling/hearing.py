"""What nodes and the registry tell, and what follows for leases and matching."""

from libs.common.clock import Clock
from libs.common.contracts.node_registry import NodeAnnounced, NodeHeartbeat, NodeStatus, NodeWorkload
from libs.common.contracts.work_marshaling import WorkProgress
from services.work_marshaling.following import Watchers
from services.work_marshaling.leading import Leading


class Hearing:
    """Every instance knows the nodes; only the leader minds leases."""

    def __init__(self, *, clock: Clock, leading: Leading, watchers: Watchers) -> None:
        self._clock = clock
        self._leading = leading
        self._watchers = watchers

    async def progress(self, told: WorkProgress) -> None:
        """Renew the leases that are named. Whoever works on what is no longer theirs is told to stop."""
        if not self._leading.leads():
            return
        leadership = self._leading.present
        for attempt in told.attempts:
            if not leadership.term.hear_progress(attempt.work_id, attempt.attempt_token):
                if leadership.term.memory.told(attempt.work_id, attempt.attempt_token):
                    continue  # its outcome overtook this: there is nothing left to stop
                leadership.dispatcher.stop(told.node_id, attempt.attempt_token, "this attempt holds no lease")
            elif attempt.work_id in self._watchers:
                self._watchers.progressed(leadership.term.memory.items[attempt.work_id], told.node_id, attempt)

    async def workload(self, told: NodeWorkload) -> None:
        self._leading.nodes.hear_workload(told, self._clock.monotonic())
        self._look_again()

    async def announcement(self, told: NodeAnnounced) -> None:
        self._leading.nodes.hear_announcement(told, self._clock.monotonic())
        self._look_again()

    async def heartbeat(self, told: NodeHeartbeat) -> None:
        self._leading.nodes.hear_heartbeat(told, self._clock.monotonic())

    async def status(self, told: NodeStatus) -> None:
        self._leading.nodes.hear_status(told)
        self._look_again()

    def _look_again(self) -> None:
        if self._leading.leads():
            self._leading.present.term.wake()
