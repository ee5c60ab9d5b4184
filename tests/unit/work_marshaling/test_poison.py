"""Items that kill their nodes: they end, and nobody else pays for them with more than patience."""

import random
from dataclasses import replace

import hypothesis.strategies as st
from hypothesis import given, settings

from libs.common.contracts.work_marshaling import AGENT_RESTARTED, WorkError, WorkStatus
from services.work_marshaling.facts import apply
from services.work_marshaling.leases import Leases
from services.work_marshaling.machine import decide
from services.work_marshaling.matching import company
from services.work_marshaling.model import Completed, Event, Failed, Given, LeaseExpired, Policy, RetryDue, WorkItem
from services.work_marshaling.nodes import Nodes
from services.work_marshaling.scheduler import Queue
from tests.unit.work_marshaling.builders import NOW, workload
from tests.unit.work_marshaling.test_machine import Story
from tests.unit.work_marshaling.test_scheduling import item

POLICY = Policy(retry_max=0, retry_delay_seconds=5.0, poison_nodes=3)


class Mesh:
    """Nodes that run what they are given, and die of poison with everything aboard. No item may fail even once."""

    def __init__(self, *, node_count: int, slots: int, poison: frozenset[str], seed: int, policy: Policy) -> None:
        self.policy = policy
        self.poison = poison
        self.chance = random.Random(seed)
        self.nodes = Nodes(silence_seconds=30)
        for number in range(node_count):
            self.nodes.hear_workload(workload(f"n{number}", slots=slots), 0.0)
        self.queue = Queue(ageing_seconds=300.0, poison_nodes=policy.poison_nodes)
        self.leases = Leases()
        self.items: dict[str, WorkItem] = {}
        self.running: dict[str, list[str]] = {node.node_id: [] for node in self.nodes.all()}
        self.tokens = 0

    def submit(self, each: WorkItem) -> None:
        self.items[each.work_id] = each
        self.queue.add(each)

    def happen(self, work_id: str, event: Event) -> None:
        now = self.items[work_id]
        for fact in decide(now, event, self.policy, NOW, 0.5):
            now = apply(now, fact)  # type: ignore[arg-type]
        self.items[work_id] = now
        if now.live is None:
            self.leases.close(work_id)
        if now.status is WorkStatus.RETRYING and now.retry_at is not None:
            self.happen(work_id, RetryDue(at=now.retry_at))
        elif now.status is WorkStatus.PENDING:
            self.queue.add(now)

    def turn(self) -> None:
        free = self.leases.free(self.nodes)
        now = NOW.timestamp()
        for choice in self.queue.choose(self.nodes, free, now=now, most=500, aboard=self.leases.aboard):
            self.tokens += 1
            token = f"t{self.tokens}"
            aboard = company(self.items[choice.work_id], self.policy.poison_nodes)
            terms = {"now": 0.0, "seconds": 30.0, "most_seconds": 60.0}
            self.leases.open(choice.work_id, token, choice.node_id, "chat", company=aboard, **terms)  # type: ignore[arg-type]
            self.happen(choice.work_id, Given(node_id=choice.node_id, token=token))
            self.running[choice.node_id].append(choice.work_id)
        for node_id, aboard in self.running.items():
            if self.poison.intersection(aboard):
                self.running[node_id] = []
                for work_id in aboard:
                    self.happen(work_id, LeaseExpired(token=self.token(work_id), died=True))
            elif aboard:
                done = self.chance.sample(aboard, self.chance.randint(1, len(aboard)))
                self.running[node_id] = [work_id for work_id in aboard if work_id not in done]
                for work_id in done:
                    end = Completed(work_id=work_id, token=self.token(work_id), out_seq=1, result_bytes=0)
                    self.happen(work_id, end)

    def token(self, work_id: str) -> str:
        live = self.items[work_id].live
        assert live is not None
        return live.token

    def run(self) -> None:
        for _ in range(100_000):
            if not len(self.queue) and not any(self.running.values()):
                return
            self.turn()
        raise AssertionError(f"{len(self.queue)} items wait for ever")

    def check(self) -> None:
        for work_id, each in self.items.items():
            if work_id in self.poison:
                assert each.status is WorkStatus.DEAD
                assert len(each.killed) == min(self.policy.poison_nodes, len(self.running))
            else:
                assert each.status is WorkStatus.COMPLETED


def mesh_of(good: int, bad: int, **fields: object) -> Mesh:
    template = item("w", 1)._replace(spec=item("w", 1).spec._replace(max_attempts=1))
    chance = random.Random(good + bad)
    names = [f"g{number}" for number in range(good)] + [f"p{number}" for number in range(bad)]
    chance.shuffle(names)
    known: dict[str, object] = {"node_count": 20, "slots": 8, "seed": 1, "policy": POLICY}
    mesh = Mesh(poison=frozenset(name for name in names if name[0] == "p"), **known | fields)  # type: ignore[arg-type]
    for number, name in enumerate(names, start=1):
        mesh.submit(template._replace(work_id=name, sequence=number))
    return mesh


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 60), st.integers(0, 15), st.integers(1, 6), st.integers(1, 9), st.integers(2, 4), st.integers(0, 99)
)
def test_every_good_item_is_done_at_its_only_attempt_and_every_poisonous_one_is_dead(
    good: int, bad: int, node_count: int, slots: int, poison_nodes: int, seed: int
):
    policy = replace(POLICY, poison_nodes=poison_nodes)
    mesh = mesh_of(good, bad, node_count=node_count, slots=slots, policy=policy, seed=seed)

    mesh.run()

    mesh.check()


def test_a_thousand_poisonous_items_among_ten_thousand_good_ones():
    mesh = mesh_of(10_000, 1_000)

    mesh.run()

    mesh.check()
    assert all(each.deaths == 3 for name, each in mesh.items.items() if name in mesh.poison)


def test_an_item_whose_node_died_has_lost_no_attempt():
    story = Story(max_attempts=1).assign()
    story.tell(LeaseExpired(token="t1", died=True))

    assert story.status is WorkStatus.RETRYING
    assert story.item is not None
    assert (story.item.counted_attempts, story.item.killed) == (0, frozenset({"n1"}))


def test_an_agent_that_restarted_says_that_its_node_died():
    story = Story(max_attempts=1).assign()
    error = WorkError(code=AGENT_RESTARTED, message="killed")
    story.tell(Failed(work_id="w", token="t1", out_seq=1, error=error))

    assert story.status is WorkStatus.RETRYING
    assert story.item is not None
    assert story.item.deaths == 1


def test_an_item_that_killed_enough_nodes_is_dead_with_its_trail():
    story = Story()
    for number in (1, 2, 3):
        story.assign(f"t{number}", f"n{number}").tell(LeaseExpired(token=f"t{number}", died=True))
        if story.item is not None and story.item.retry_at is not None:
            story.tell(RetryDue(at=story.item.retry_at))

    assert story.status is WorkStatus.DEAD
    assert story.item is not None
    assert story.item.error is not None
    assert (story.item.error.code, "n1, n2, n3" in story.item.error.message) == ("poison", True)


def test_an_attempt_that_took_too_long_is_no_death():
    story = Story(max_attempts=1).assign()
    story.tell(LeaseExpired(token="t1", timeout=True, died=True))

    assert story.status is WorkStatus.DEAD
