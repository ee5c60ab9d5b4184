"""Look at the machine, tell what it has, say that it is alive."""

import asyncio

import structlog

from libs.common.bus.bus import Bus
from libs.common.clock import Clock
from libs.common.contracts.node_registry import (
    ANNOUNCE,
    HEARTBEAT,
    Discover,
    Gpu,
    GpuBeat,
    Inventory,
    NodeAnnounced,
    NodeHeartbeat,
    PlatformFacts,
    TierVerdict,
)
from libs.hardware.tiers import classify
from services.resource_detector.changes import changed, gpus_changed, with_missing
from services.resource_detector.model import Identity, Topology
from services.resource_detector.observer import Observer
from services.resource_detector.probes import Probes
from services.resource_detector.topology import matrix

log = structlog.get_logger()


class ResourceDetector:
    def __init__(self, *, identity: Identity, probes: Probes, bus: Bus, clock: Clock, observer: Observer) -> None:
        self._identity = identity
        self._probes = probes
        self._bus = bus
        self._clock = clock
        self._observer = observer
        self._inventory: Inventory | None = None
        self._gpus: tuple[Gpu, ...] = ()
        self._sequence = 0
        self._turn = asyncio.Lock()

    async def inventory(self) -> Inventory:
        """What is known. Looks first if nothing is."""
        return self._inventory if self._inventory is not None else await self._look()

    async def tier(self) -> TierVerdict:
        return classify(await self.inventory(), override=self._identity.tier)

    async def platform(self) -> PlatformFacts:
        return PlatformFacts.model_validate(await self.inventory(), from_attributes=True)

    async def topology(self) -> Topology:
        inventory = await self.inventory()
        return matrix(inventory.gpus, inventory.gpu_links)

    async def refresh(self) -> Inventory:
        """Look again at everything, and tell everybody if it changed. Raises `Disconnected` when it cannot tell."""
        before = self._inventory
        now = await self._look(look_again=True)
        if changed(before, now):
            await self._announce(now)
        return now

    async def announce(self) -> None:
        """Look again and tell everybody. Raises `Disconnected`."""
        await self._announce(await self._look())

    async def answer_discovery(self, question: Discover) -> None:
        await self._announce(await self.inventory())

    async def beat(self) -> None:
        """Say that we are alive; announce at once when something happened to a GPU. Raises `Disconnected`."""
        threads = self._inventory.cpu.threads if self._inventory is not None else None
        pulse = await self._probes.pulse(threads=threads or 1)
        self._observer.pulse(pulse)
        gpus = with_missing(self._gpus, pulse.gpus)
        self._sequence += 1
        beat = NodeHeartbeat(
            node_id=self._identity.node_id,
            boot_id=self._identity.boot_id,
            sequence=self._sequence,
            at=self._clock.now(),
            load_ratio=pulse.load_ratio,
            memory_available_mb=pulse.memory_available_mb,
            gpus=tuple(_beat(gpu) for gpu in gpus),
        )
        await self._bus.publish(HEARTBEAT, beat)
        self._observer.told("heartbeat")
        if self._inventory is not None and gpus_changed(self._gpus, gpus):
            log.warning("gpus_changed", broken=[f"{gpu.uuid}: {gpu.problem}" for gpu in gpus if not gpu.healthy])
            await self.announce()

    async def _look(self, *, look_again: bool = False) -> Inventory:
        """One look at a time: several that ask at once wait for the same machine."""
        async with self._turn:
            found = await self._probes.inventory(look_again=look_again)
            inventory = found.model_copy(update={"gpus": with_missing(self._gpus, found.gpus)})
            if self._inventory is None or inventory.problems != self._inventory.problems:
                for problem in inventory.problems:
                    log.warning("source_failed", source=problem.source, reason=problem.message)
            self._inventory, self._gpus = inventory, inventory.gpus
            self._observer.inventory(inventory)
            return inventory

    async def _announce(self, inventory: Inventory) -> None:
        verdict = classify(inventory, override=self._identity.tier)
        told = NodeAnnounced(
            node_id=self._identity.node_id,
            boot_id=self._identity.boot_id,
            at=self._clock.now(),
            tier=verdict.tier,
            tier_reasons=verdict.reasons,
            labels=dict(self._identity.labels),
            inventory=inventory,
            heartbeat_seconds=self._identity.heartbeat_seconds,
        )
        await self._bus.publish(ANNOUNCE, told)
        self._observer.told("announcement")


def _beat(gpu: Gpu) -> GpuBeat:
    return GpuBeat(
        uuid=gpu.uuid,
        vram_free_mb=gpu.vram_free_mb,
        utilization_ratio=gpu.utilization_ratio,
        temperature_celsius=gpu.temperature_celsius,
        healthy=gpu.healthy,
    )
