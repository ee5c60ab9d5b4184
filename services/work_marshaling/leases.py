"""Who holds which item, and until when on our own monotonic clock. Silence counts only while we could hear."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.work_marshaling.nodes import Nodes
from services.work_marshaling.slots import Promise, Slots

SETTLING_SECONDS = 10.0
"""So long after its start an attempt is given to use the memory that it asked for."""


@dataclass(slots=True)
class Lease:
    """`until` moves with every renewal; `latest` is when even a renewed lease ends.

    `company`: how many suspects may be on its node at once, when it is one of them; see `company`.
    """

    token: str
    node_id: str
    work_type: str
    boot_id: str | None
    company: int
    seconds: float
    until: float
    latest: float


class Leases:
    def __init__(self) -> None:
        self._by_work: dict[str, Lease] = {}
        self._held: dict[str, Counter[str]] = {}
        self._floor = 0.0
        self._free: dict[str, Slots] = {}
        self._touched: set[str] = set()
        self._claims: dict[str, dict[str, tuple[float, Promise]]] = {}
        self._suspects: dict[str, dict[str, int]] = {}
        self._quotas: dict[str, int] = {}
        self._version = -1

    def __len__(self) -> int:
        return len(self._by_work)

    def __contains__(self, work_id: str) -> bool:
        return work_id in self._by_work

    def open(
        self,
        work_id: str,
        token: str,
        node_id: str,
        work_type: str,
        *,
        now: float,
        seconds: float,
        most_seconds: float,
        memory: Promise | None = None,
        boot_id: str | None = None,
        company: int = 0,
    ) -> Lease:
        """`seconds` is one term; renewed or not, it ends after `most_seconds`."""
        latest = now + max(seconds, most_seconds)
        lease = Lease(token, node_id, work_type, boot_id, company, seconds, now + seconds, latest)
        self._by_work[work_id] = lease
        self._held.setdefault(node_id, Counter())[work_type] += 1
        if company:
            self._suspects.setdefault(node_id, {})[work_id] = company
        self._touched.add(node_id)
        if memory is not None:
            self._claims.setdefault(node_id, {})[work_id] = (now, memory)
        return lease

    def renew(self, work_id: str, token: str, now: float) -> bool:
        """False when this token does not hold the item."""
        lease = self._by_work.get(work_id)
        if lease is None or lease.token != token:
            return False
        lease.until = now + lease.seconds
        return True

    def close(self, work_id: str) -> bool:
        lease = self._by_work.pop(work_id, None)
        if lease is not None:
            self._held[lease.node_id][lease.work_type] -= 1
            self._touched.add(lease.node_id)
            self._claims.get(lease.node_id, {}).pop(work_id, None)
            self._suspects.get(lease.node_id, {}).pop(work_id, None)
        return lease is not None

    def deaf_until(self, now: float, term_seconds: float) -> None:
        """We could not hear anybody up to now: nothing expires for one more term."""
        self._floor = max(self._floor, now + term_seconds)

    def ends(self, work_id: str, token: str) -> float | None:
        """When the lease ends as things stand. None when this token holds none."""
        lease = self._by_work.get(work_id)
        if lease is None or lease.token != token:
            return None
        return max(min(lease.until, lease.latest), self._floor)

    def node_died(self, work_id: str, nodes: Nodes, now: float, silence_seconds: float) -> bool:
        """Whether a lease that nobody renewed ended because its node is gone: silent itself, or another run of it."""
        lease = self._by_work.get(work_id)
        if lease is None:
            return False
        agent = nodes[lease.node_id].agent
        if agent is not None and lease.boot_id not in (None, agent.boot_id):
            return True
        return nodes.silent_for(lease.node_id, now) > silence_seconds / 2

    def limit(self, node_id: str, quota: int | None) -> None:
        """So many leases at most; None: as many as it has slots."""
        if self._quotas.get(node_id) != quota:
            self._touched.add(node_id)
            if quota is None:
                del self._quotas[node_id]
            else:
                self._quotas[node_id] = quota

    def aboard(self, node_id: str) -> int:
        """How many leases there are on a node."""
        held = self._held.get(node_id)
        return 0 if held is None else held.total()

    def took_too_long(self, work_id: str, now: float) -> bool:
        lease = self._by_work.get(work_id)
        return lease is not None and lease.until > now >= lease.latest

    def free(self, nodes: Nodes) -> Mapping[str, Slots]:
        """Slots that none of our leases takes, of each node that has some. Only what changed is counted anew."""
        changed = {node.node_id for node in nodes.changed_since(self._version)} | self._touched
        if self._version < nodes.complete_since:
            changed.update(self._free)
        changed.update(self._claims)
        self._version = nodes.version
        self._touched.clear()
        for node_id in changed:
            node = nodes[node_id]
            machine = None if node.hardware is None else node.hardware.now
            slots = Slots(
                node.pools,
                self._held.get(node_id),
                ram_mb=None if machine is None else machine.ram_free_mb,
                vram_mb=None if machine is None else [gpu.free_mb or 0 for gpu in machine.gpus if gpu.works],
                promised=self._claimed(node_id, nodes.memory_heard.get(node_id, 0.0)),
                suspects=tuple(self._suspects.get(node_id, {}).values()),
                quota=self._quotas.get(node_id),
            )
            if slots.total() > 0:
                self._free[node_id] = slots
            else:
                self._free.pop(node_id, None)
        return self._free

    def forget(self, node_id: str) -> None:
        """It is gone; leases that it holds here stay until they end."""
        for known in (self._held, self._suspects, self._quotas):
            if known is self._quotas or not self.aboard(node_id):
                known.pop(node_id, None)

    def _claimed(self, node_id: str, heard: float) -> Sequence[Promise]:
        """What leases are taken to use that the node may not yet have told as used."""
        claims = self._claims.get(node_id)
        if claims is None:
            return ()
        for work_id in [work_id for work_id, (since, _) in claims.items() if since + SETTLING_SECONDS < heard]:
            del claims[work_id]
        if not claims:
            del self._claims[node_id]
        return [promised for _, promised in claims.values()]
