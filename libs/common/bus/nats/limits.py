"""What a nats-server takes: checked here, because it answers a message that is too large by hanging up."""

from libs.common.bus.transport import Headers
from libs.common.errors import TooLarge

APPEND_RESERVE_BYTES = 512
"""Room for what an append adds to the headers: message id and expected sequence, with their names."""

_FRAME = len("NATS/1.0\r\n\r\n")
_LINE = len(": \r\n")


def check_size(limit: int, subject: str, payload: bytes, headers: Headers, reserve: int = 0) -> None:
    """Raises `TooLarge` when payload and headers are more than `limit` bytes."""
    size = len(payload) + reserve
    if headers:
        size += _FRAME + sum(len(name.encode()) + len(value.encode()) + _LINE for name, value in headers.items())
    if size > limit:
        raise TooLarge(
            f"{len(payload)} bytes with their headers are more than the nats-server's limit of {limit}",
            subject=subject,
            limit=limit,
        )
