"""The letter that is kept about a durable message that could not be used."""

import base64
from collections.abc import Mapping
from datetime import datetime

from libs.common.bus.transport import Stored
from libs.common.contracts.base import DeadLetter
from libs.common.errors import MeshError

KEPT_BYTES = 512 * 1024
"""How much of a payload a letter keeps, or less where the server takes less: the letter itself always fits."""

_OVERHEAD_BYTES = 32 * 1024
_KEPT_HEADERS = 32
_HEADER_CHARACTERS = 100
_REASON_CHARACTERS = 1000


def letter_about(stored: Stored, error: MeshError, *, found_by: str, at: datetime, max_payload: int) -> DeadLetter:
    kept = max(0, min(KEPT_BYTES, (max_payload - _OVERHEAD_BYTES) * 3 // 4))
    return DeadLetter(
        subject=stored.subject,
        reason_code=error.code,
        reason=_readable(error.message)[:_REASON_CHARACTERS],
        found_by=found_by,
        at=at,
        stream=stored.stream,
        sequence=stored.sequence,
        headers=_first(stored.headers),
        payload=base64.b64encode(stored.payload[:kept]).decode("ascii"),
        payload_bytes=len(stored.payload),
    )


def letter_id(stored: Stored) -> str:
    """The same message found again, or by somebody else, makes no second letter."""
    return f"dead-{stored.stream}-{stored.sequence}"


def _first(headers: Mapping[str, str]) -> dict[str, str]:
    pairs = list(headers.items())[:_KEPT_HEADERS]
    return {_readable(key)[:_HEADER_CHARACTERS]: _readable(value)[:_HEADER_CHARACTERS] for key, value in pairs}


def _readable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
