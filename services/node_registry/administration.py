"""What people tell the registry and it must not forget: kept in a bucket that every registry follows."""

import structlog
from pydantic import ValidationError

from libs.common.bus.bus import Bus, Entry
from libs.common.clock import Clock
from libs.common.contracts.base import Message, node_token
from libs.common.contracts.node_administration import DrainNode, NodeDrained, NodeRegistration, RestHeartbeat
from libs.common.contracts.node_registry import HEARTBEAT, NodeAnnounced, NodeHeartbeat, NodeState, NodeView
from libs.common.contracts.streams import NODE_REGISTRY
from libs.common.errors import Conflict, Unavailable, WrongRevision
from services.node_registry.registrations import announcement
from services.node_registry.use_cases import NodeRegistry

log = structlog.get_logger()

WRITE_TRIES = 5
LEAVE_SECONDS = 60
"""How long a deletion is told to registries that come later."""


class Administration:
    """`registration_seconds`: how long a machine told over REST counts as online without sending heartbeats."""

    def __init__(self, *, registry: NodeRegistry, bus: Bus, clock: Clock, registration_seconds: float) -> None:
        self._registry = registry
        self._bus = bus
        self._clock = clock
        self._registration_seconds = registration_seconds

    async def drain(self, drain: DrainNode) -> NodeDrained:
        """Raises `Unavailable` when it could not be written: then nothing is changed."""
        await self._write(f"drain.{node_token(drain.node_id)}", drain)
        self._registry.take_drain(drain)
        return NodeDrained(
            node_id=drain.node_id,
            draining=drain.draining,
            reason=drain.reason,
            known=self._registry.knows(drain.node_id),
        )

    async def register(self, registration: NodeRegistration) -> NodeView:
        """Raises `Malformed`, `Unavailable`, and `Conflict` for a node that announces itself."""
        beat = registration.heartbeat_seconds or self._registration_seconds / self._registry.rules.suspect_beats
        told = announcement(registration, at=self._clock.now(), heartbeat_seconds=beat)
        if self._registry.knows(told.node_id):
            known = await self._registry.get(told.node_id)
            if known.boot_id != told.boot_id and known.state is NodeState.ONLINE:
                raise Conflict(f"{told.node_id} announces itself; it cannot be told over REST.", node_id=told.node_id)
        elif self._registry.full is not None:
            raise Unavailable(f"{told.node_id} cannot be taken: {self._registry.full}.", node_id=told.node_id)
        lasting = round(2 * told.heartbeat_seconds * self._registry.rules.offline_beats)
        await self._write(f"registered.{node_token(told.node_id)}", told, ttl_seconds=max(1, lasting))
        await self._registry.hear_announcement(told)
        return await self._registry.get(told.node_id)

    async def beat(self, node_id: str, beat: RestHeartbeat) -> NodeView:
        """Told to all registries. Raises `NotFound`, `Unavailable`."""
        known = await self._registry.get(node_id)
        told = NodeHeartbeat(
            node_id=node_id,
            boot_id=known.boot_id,
            sequence=self._registry.last_sequence(node_id) + 1,
            at=self._clock.now(),
            load_ratio=beat.load_ratio,
            memory_available_mb=beat.memory_available_mb,
            gpus=beat.gpus,
        )
        await self._bus.publish(HEARTBEAT, told)
        await self._registry.hear_heartbeat(told)
        return await self._registry.get(node_id)

    async def forget(self, node_id: str) -> None:
        """Raises `NotFound`, `Unavailable`, and `Conflict` for a node that is online."""
        known = await self._registry.get(node_id)
        if known.state is NodeState.ONLINE:
            raise Conflict(f"{node_id} is ONLINE; stop it first, or it is there again at once.", node_id=node_id)
        token = node_token(node_id)
        registered = await self._bus.get(NODE_REGISTRY, f"registered.{token}")
        if registered is not None:
            await self._bus.delete(NODE_REGISTRY, registered.key, revision=registered.revision)
        await self._write(f"forgotten.{token}", DrainNode(node_id=node_id), ttl_seconds=LEAVE_SECONDS)
        self._registry.take_leave(node_id)

    async def follow(self) -> None:
        """Runs until cancelled: takes what any registry wrote."""
        async for entry in self._bus.watch(NODE_REGISTRY):
            await self._take(entry)

    async def _take(self, entry: Entry) -> None:
        what, _, token = entry.key.partition(".")
        if entry.payload is None:
            if what == "drain":
                await self._write_again(token)
            return
        try:
            if what == "drain":
                self._registry.take_drain(DrainNode.model_validate_json(entry.payload))
            elif what == "forgotten":
                self._registry.take_leave(DrainNode.model_validate_json(entry.payload).node_id)
            elif what == "registered":
                await self._take_registration(NodeAnnounced.model_validate_json(entry.payload))
        except ValidationError as error:
            log.error("registry_entry_unreadable", key=entry.key, revision=entry.revision, reason=str(error))

    async def _write_again(self, token: str) -> None:
        """A drain is ended by what is written, never by its key's end: so the bucket was lost."""
        drain = self._registry.drain_of(token)
        if drain is None:
            return
        try:
            await self._bus.put(NODE_REGISTRY, f"drain.{token}", drain, revision=0)
        except WrongRevision:
            log.debug("drain_written_by_another", node_id=drain.node_id)
        except Unavailable as error:
            log.error("drain_not_written_again", node_id=drain.node_id, reason=error.message)

    async def _take_registration(self, told: NodeAnnounced) -> None:
        """What another registry was told. One that is older than what we know is no sign of life."""
        if self._registry.knows(told.node_id):
            known = await self._registry.get(told.node_id)
            if known.boot_id != told.boot_id or known.announced_at >= told.at:
                return
        await self._registry.hear_announcement(told)

    async def _write(self, key: str, message: Message, *, ttl_seconds: int | None = None) -> None:
        """The last word counts. Raises `WrongRevision` only when others write it all the time."""
        for left in range(WRITE_TRIES, 0, -1):
            entry = await self._bus.get(NODE_REGISTRY, key)
            revision = entry.revision if entry is not None else 0
            try:
                await self._bus.put(NODE_REGISTRY, key, message, revision=revision, ttl_seconds=ttl_seconds)
                return
            except WrongRevision:
                if left == 1:
                    raise
