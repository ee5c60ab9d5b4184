"""What a gateway is told of instances, and when: the registrar on twins."""

from collections import Counter
from datetime import UTC, datetime

import pytest

from libs.common.clock import ManualClock
from libs.common.contracts.vllm_instances import DeployRequest, EngineChoice, Instance, InstanceState, Replica
from libs.common.errors import Unavailable
from libs.inference.tensorzero import Complaint, Tree, addresses_in, complaints
from services.vllm_orchestrator.registering import Registering

NOW = datetime(2030, 1, 1, tzinfo=UTC)


class Gateway:
    """A folder in memory, checks of our own, and a gateway that comes up or does not."""

    by = "checks"

    def __init__(self) -> None:
        self.theirs: Tree = {}
        self.now: Tree = {}
        self.reloads = 0
        self.comes_up = True

    async def own(self) -> Tree:
        return self.theirs

    async def live(self) -> Tree:
        return self.now

    async def put(self, tree: Tree) -> None:
        self.now = tree

    async def judge(self, tree: Tree) -> list[Complaint]:
        return complaints(tree)

    async def reload(self) -> None:
        self.reloads += 1
        if not self.comes_up:
            self.comes_up = True
            raise Unavailable("the gateway did not come back")


def instance(name: str, state: InstanceState = InstanceState.READY, model_name: str = "tiny") -> Instance:
    request = DeployRequest(model_name=model_name, instance_name=name)
    replica = Replica(request=request, state=state, since=NOW)
    return Instance(name=name, request=request, state=state, replicas=(replica,), created_at=NOW, since=NOW)


def unwanted(name: str) -> Instance:
    made = instance(name)
    gone = tuple(each.model_copy(update={"wanted": "gone"}) for each in made.replicas)
    return made.model_copy(update={"wanted": "gone", "replicas": gone})


class House:
    def __init__(self) -> None:
        self.gateway = Gateway()
        self.clock = ManualClock()
        self.instances: list[Instance] | None = []
        self.addresses: dict[str, str] = {}
        self.counted: Counter[str] = Counter()
        self.registering = self.make()

    def make(self) -> Registering:
        return Registering(
            self.gateway,
            self.gateway,
            self.gateway,
            self.clock,
            instances=lambda: self.instances,
            key="env::VLLM_API_KEY",
            address=lambda each, _: self.addresses.get(each.name),
            settle_seconds=2,
            count=lambda outcome: self.counted.update([outcome]),
        )

    def serve(self, *names: str, model_name: str = "tiny") -> None:
        self.instances = [instance(name, model_name=model_name) for name in names]
        self.addresses = {name: f"http://10.0.0.7:{place}" for place, name in enumerate(names, start=9001)}

    async def rounds(self, seconds: int = 3) -> None:
        for _ in range(seconds):
            await self.registering.round()
            self.clock.advance(1)
        await self.registering.round()

    def models(self) -> list[bytes]:
        return [text for path, text in self.gateway.now.items() if "model-" in path]

    def routed(self) -> set[str]:
        return {provider.removesuffix(".0") for _, provider in addresses_in(self.gateway.now)}


@pytest.fixture
def house() -> House:
    return House()


async def test_what_is_ready_is_routed_to_and_what_is_not_wanted_is_not(house: House):
    house.serve("one", "two")
    await house.rounds()
    assert house.routed() == {"one", "two"}
    assert (await house.registering.view()).providers[0].address == "http://10.0.0.7:9001"
    assert house.registering.count_models() == 1
    assert all(b'api_key_location = "env::VLLM_API_KEY"' in text for text in house.models())

    house.instances = [unwanted("one"), instance("two", InstanceState.DEGRADED)]
    await house.rounds()
    assert house.routed() == {"two"}


async def test_changes_that_follow_one_another_reload_once(house: House):
    house.serve("one")
    await house.registering.round()
    house.clock.advance(1)
    house.serve("one", "two")
    await house.rounds()
    assert (house.gateway.reloads, house.counted["applied"]) == (1, 1)


async def test_nothing_changes_nothing_is_reloaded_also_by_the_next_leader(house: House):
    house.serve("one")
    await house.rounds()
    house.registering = house.make()
    await house.rounds(40)
    assert house.gateway.reloads == 1
    assert house.registering.count_models() == 1


async def test_a_new_leader_forgets_no_engine_whose_agent_has_not_told_yet(house: House):
    house.serve("one")
    await house.rounds()
    house.registering = house.make()
    house.addresses = {}
    await house.rounds()
    assert house.routed() == {"one"}

    house.instances = [instance("one"), instance("new")]
    await house.rounds()
    assert house.routed() == {"one"}


async def test_who_does_not_lead_writes_nothing(house: House):
    house.instances = None
    await house.rounds()
    assert house.gateway.now == {}


async def test_a_broken_file_of_others_is_told_and_their_last_good_one_stays(house: House):
    good, broken = b'[metrics.m]\ntype = "float"\n', b"x = ["
    house.gateway.theirs = {"own.toml": good}
    house.serve("one")
    await house.rounds()
    house.gateway.theirs = {"own.toml": broken}
    house.serve("one", "two")
    await house.rounds()

    assert house.gateway.now["own.toml"] == good
    assert house.routed() == {"one", "two"}
    assert "own.toml: it is not TOML" in (house.registering.problem() or "")
    assert (await house.registering.view()).complaints[0].startswith("own.toml")

    house.gateway.theirs = {"own.toml": good + b"# mended\n"}
    await house.rounds()
    assert house.registering.problem() is None
    assert b"mended" in house.gateway.now["own.toml"]


async def test_files_of_others_in_our_folder_are_not_taken(house: House):
    house.gateway.theirs = {"compute_mesh/mine.toml": b""}
    house.serve("one")
    await house.rounds()
    assert "is not yours" in (house.registering.problem() or "")
    assert house.routed() == {"one"}


async def test_a_gateway_that_does_not_come_up_gets_the_configuration_before(house: House):
    house.serve("one")
    await house.rounds()
    before = house.gateway.now
    house.gateway.comes_up = False
    house.serve("one", "two")
    await house.rounds()
    assert house.gateway.now == before
    assert "the configuration before is back" in (house.registering.problem() or "")

    await house.rounds(32)
    assert house.routed() == {"one", "two"}
    assert house.counted == {"applied": 2, "undone": 1}


async def test_a_name_that_a_gateway_keeps_for_itself_is_left_out_and_told(house: House):
    house.serve("one", model_name="openai::mine")
    await house.rounds()
    assert house.routed() == set()
    assert "openai::mine" in (await house.registering.view()).left_out[0]


async def test_what_somebody_else_runs_is_not_told_the_key_of_our_engines(house: House):
    house.serve("theirs")
    (ours,) = house.instances or ()
    url = {"engine": EngineChoice.EXTERNAL, "url": "http://192.0.2.1:8000"}
    house.instances = [ours.model_copy(update={"request": ours.request.model_copy(update=url)})]
    await house.rounds()

    (text,) = house.models()
    assert b'api_key_location = "none"' in text
