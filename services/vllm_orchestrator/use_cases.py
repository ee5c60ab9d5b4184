"""What serves where, as the nodes tell it."""

from itertools import groupby

from libs.common.clock import Clock
from libs.common.contracts.node_registry import NodeWorkload
from libs.common.contracts.vllm_orchestrator import PlacedEngine, PlacedEngines, ServedModel, ServedModels
from libs.inference.fleet import Fleet, Placed


class VllmOrchestrator:
    """Believes what it heard, and when it heard it by its own clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._fleet = Fleet()

    async def hear(self, workload: NodeWorkload) -> None:
        self._fleet.hear(workload, self._clock.monotonic())

    async def engines(self, model_name: str | None) -> PlacedEngines:
        return PlacedEngines(engines=tuple(_shown(placed) for placed in self._placed(model_name)))

    async def models(self) -> ServedModels:
        by_model = groupby(self._placed(None), key=lambda placed: placed.engine.model_name)
        return ServedModels(models=tuple(_served(name, list(placed)) for name, placed in by_model))

    def ready(self) -> int:
        """How many engines would take a request now."""
        return sum(placed.usable for placed in self._placed(None))

    def _placed(self, model_name: str | None) -> list[Placed]:
        return self._fleet.engines(self._clock.monotonic(), model_name=model_name)


def _shown(placed: Placed) -> PlacedEngine:
    return PlacedEngine(
        node_id=placed.node_id,
        engine=placed.engine,
        free_slots=placed.free_slots,
        draining=placed.draining,
        heard_seconds_ago=round(placed.heard_seconds_ago, 3),
    )


def _served(model_name: str, placed: list[Placed]) -> ServedModel:
    usable = [each for each in placed if each.usable]
    return ServedModel(
        model_name=model_name,
        test_model=any(each.engine.test_model for each in placed),
        ready=len(usable),
        slots=sum(each.engine.slots for each in usable),
        node_ids=tuple(dict.fromkeys(each.node_id for each in placed)),
    )
