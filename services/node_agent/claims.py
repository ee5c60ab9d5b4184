"""Memory of this machine, kept for what the agent runs. Port of `claiming.py`."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """`claim_id` is the claimer's own: what was claimed under it and ended is not claimed again under it.

    `vram_mb` is wanted on each of `gpu_count` GPUs, of these ones if they are named.
    """

    claim_id: str
    ram_mb: int
    purpose: str
    vram_mb: int = 0
    gpu_count: int = 0
    gpu_uuids: tuple[str, ...] | None = None


class Claims(Protocol):
    """The ledger of this machine, which its GPU orchestrator keeps."""

    async def reserve(self, wanted: Wanted) -> tuple[str, ...]:
        """On which GPUs, by UUID. The same again changes nothing. Given back after a minute unless it is committed.

        Raises `Conflict` with what is in the way; `Unavailable` where no ledger answers.
        """
        ...

    async def commit(self, claim_id: str, *, pid: int | None = None, container_id: str | None = None) -> None:
        """It becomes that of a process or a container, and ends with it. The same again changes nothing.

        Raises `NotFound` or `Conflict` for one that is not open, `Unavailable` where no ledger answers.
        """
        ...

    async def release(self, claim_id: str) -> None:
        """What cannot be given back now ends with its process, or by time."""
        ...
