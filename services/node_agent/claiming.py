"""Claims memory in this machine's ledger, for what the agent itself runs."""

import structlog

from libs.common.bus.bus import Bus
from libs.common.contracts.gpu_orchestrator import COMMIT, RELEASE, RESERVE, Commit, Release, ReserveRequest
from libs.common.errors import MeshError, NotFound
from services.node_agent.claims import Wanted

log = structlog.get_logger()

ASK_SECONDS = 2.0
HELD_SECONDS = 60.0
OWNER = "node_agent"


class Claiming:
    """See `Claims`."""

    def __init__(self, bus: Bus, *, node_id: str) -> None:
        self._bus = bus
        self._node_id = node_id

    async def reserve(self, wanted: Wanted) -> tuple[str, ...]:
        asked = ReserveRequest(
            reservation_id=wanted.claim_id,
            required_mb=wanted.vram_mb,
            gpu_count=wanted.gpu_count,
            gpu_uuids=wanted.gpu_uuids,
            ram_mb=wanted.ram_mb,
            timeout_seconds=HELD_SECONDS,
            owner=OWNER,
            purpose=wanted.purpose,
        )
        held = await self._bus.request(RESERVE, asked, node_id=self._node_id, timeout=ASK_SECONDS)
        return held.gpu_uuids

    async def commit(self, claim_id: str, *, pid: int | None = None, container_id: str | None = None) -> None:
        asked = Commit(reservation_id=claim_id, pid=pid, container_id=container_id)
        await self._bus.request(COMMIT, asked, node_id=self._node_id, timeout=ASK_SECONDS)

    async def release(self, claim_id: str) -> None:
        try:
            await self._bus.request(
                RELEASE, Release(reservation_id=claim_id), node_id=self._node_id, timeout=ASK_SECONDS
            )
        except NotFound:
            return
        except MeshError as error:
            log.info("claim_not_released", claim=claim_id, reason=error.message)
