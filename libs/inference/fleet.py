"""Which engines are where, from what the nodes' agents tell. Pure: the listener says when it heard what."""

from collections.abc import Iterator
from dataclasses import dataclass

from libs.common.contracts.node_registry import Engine, EngineState, NodeWorkload

SILENT_SECONDS = 20.0
"""A node's agent tells every five seconds; after four that did not come its engines are not counted on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """An engine, the node it is on, and how long ago that node was heard."""

    node_id: str
    engine: Engine
    free_slots: int
    draining: bool
    heard_seconds_ago: float

    @property
    def usable(self) -> bool:
        return self.engine.state == EngineState.READY and not self.draining and self.engine.url is not None


class Fleet:
    """The last word of every node. `at` is always the listener's own monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._heard: dict[str, tuple[float, NodeWorkload]] = {}

    def hear(self, workload: NodeWorkload, at: float) -> None:
        self._heard[workload.node_id] = (at, workload)

    def engines(self, at: float, *, model_name: str | None = None) -> list[Placed]:
        """The engines of nodes that were heard lately, by model and node."""
        self._forget(at)
        found = (placed for placed in self._placed(at) if model_name in (None, placed.engine.model_name))
        return sorted(found, key=lambda placed: (placed.engine.model_name, placed.node_id, placed.engine.engine_id))

    def _placed(self, at: float) -> Iterator[Placed]:
        for heard_at, workload in self._heard.values():
            for engine in workload.engines:
                yield Placed(
                    node_id=workload.node_id,
                    engine=engine,
                    free_slots=workload.free_slots,
                    draining=workload.draining,
                    heard_seconds_ago=max(0.0, at - heard_at),
                )

    def _forget(self, at: float) -> None:
        self._heard = {node: heard for node, heard in self._heard.items() if at - heard[0] <= SILENT_SECONDS}
