"""What JetStream's error codes mean to us. The codes are those of nats-server's `errors.json`."""

from collections.abc import Mapping
from typing import Any

from libs.common.errors import Conflict, MeshError, NotFound, StreamFull, TooLarge, Unavailable, WrongRevision

TRY_AGAIN = frozenset({10008, 10167})
"""JetStream has no leader at the moment; the stream's ingest queue is full."""

_STREAM_MISSING = 10059
_MISSING = frozenset({10014, 10037, 10043})
_FULL = frozenset({10002, 10023, 10028, 10047, 10122})
_WRONG_SEQUENCE = frozenset({10071, 10164})
_STORE_FAILED = 10077
_MESSAGE_TOO_LARGE = 10054
_NOT_ENABLED = frozenset({10035, 10039, 10076})


class StreamMissing(NotFound):
    """There is no such stream."""


def refusal(error: Mapping[str, Any], about: str) -> MeshError:
    """The error that JetStream answered, as ours. `about` is the stream or subject it was about."""
    code = int(error.get("err_code", 0))
    told = str(error.get("description", "no reason given"))
    message = f"{about}: {told}"
    if code in _WRONG_SEQUENCE:
        return WrongRevision(message, about=about)
    if code in _FULL or (code == _STORE_FAILED and "maximum" in told):
        return StreamFull(message, about=about)
    if code == _MESSAGE_TOO_LARGE:
        return TooLarge(message, about=about)
    if code == _STREAM_MISSING:
        return StreamMissing(message, about=about)
    if code in _MISSING:
        return NotFound(message, about=about)
    if code in _NOT_ENABLED:
        return Unavailable(f"JetStream is not enabled for this account: {told}", about=about)
    if int(error.get("code", 500)) >= 500 and code not in _REFUSED_CONFIGURATIONS:
        return Unavailable(message, about=about, jetstream_code=code)
    return Conflict(message, about=about, jetstream_code=code)


_REFUSED_CONFIGURATIONS = frozenset({10012, 10049, 10052, 10053, 10069, 10148, 10149})
"""Codes that the server gives with status 500 though repeating the request cannot help."""
