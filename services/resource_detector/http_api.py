"""The HTTP door: which route leads to which method."""

from fastapi import APIRouter

from libs.common.contracts.node_registry import (
    Cpu,
    Disk,
    Gpu,
    Inventory,
    Memory,
    NetworkAddress,
    PlatformFacts,
    TierVerdict,
)
from services.resource_detector.model import Topology
from services.resource_detector.use_cases import ResourceDetector


def router(detector: ResourceDetector) -> APIRouter:
    routes = APIRouter(prefix="/api/v1", tags=["resources"])
    routes.include_router(_parts(detector))

    @routes.get("/resources")
    async def resources() -> Inventory:
        """What this machine has, as it was last read."""
        return await detector.inventory()

    @routes.get("/tier")
    async def tier() -> TierVerdict:
        """What class of machine this is, and why."""
        return await detector.tier()

    @routes.post("/refresh")
    async def refresh() -> Inventory:
        """Read everything again, and announce it if it changed."""
        return await detector.refresh()

    @routes.get("/inventory")
    async def inventory() -> Inventory:
        """All in one document, to attach to a report of a fault."""
        return await detector.inventory()

    return routes


def _parts(detector: ResourceDetector) -> APIRouter:
    routes = APIRouter(prefix="/resources")

    @routes.get("/cpu")
    async def cpu() -> Cpu:
        return (await detector.inventory()).cpu

    @routes.get("/memory")
    async def memory() -> Memory:
        return (await detector.inventory()).memory

    @routes.get("/gpus")
    async def gpus() -> tuple[Gpu, ...]:
        return (await detector.inventory()).gpus

    @routes.get("/topology")
    async def topology() -> Topology:
        """How the GPUs are connected, as matrices: PCI path, NVLinks, peer access."""
        return await detector.topology()

    @routes.get("/platform")
    async def platform() -> PlatformFacts:
        return await detector.platform()

    @routes.get("/disks")
    async def disks() -> tuple[Disk, ...]:
        return (await detector.inventory()).disks

    @routes.get("/network")
    async def network() -> tuple[NetworkAddress, ...]:
        return (await detector.inventory()).network

    return routes
