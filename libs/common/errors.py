"""The errors a caller is meant to see. One class per situation, one stable code per class, the same on NATS and REST.

Anything else that escapes a handler is a bug: it is logged with its trace where it is handled, counted, and answered
as `internal` without detail.
"""

from collections.abc import Mapping
from typing import ClassVar


class MeshError(Exception):
    """A request the mesh understood and declines, or cannot serve now.

    `code` is stable and machine-readable, `status` is the HTTP status REST answers with, `retryable` says whether the
    same request may succeed later. `details` holds JSON values only.
    """

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, /, **details: object) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, object] = details


class Malformed(MeshError):
    """What arrived cannot be read, or a field has a value that is not allowed."""

    code = "malformed"
    status = 422


class TooLarge(MeshError):
    """What arrived, or is to be sent, is larger than allowed."""

    code = "too_large"
    status = 413


class NotFound(MeshError):
    """There is no such thing."""

    code = "not_found"
    status = 404


class Conflict(MeshError):
    """The request contradicts what is already there."""

    code = "conflict"
    status = 409


class WrongRevision(Conflict):
    """Somebody else wrote first: the revision or sequence that the writer expected is no longer the newest."""

    code = "wrong_revision"


class Unsatisfiable(Conflict):
    """No node that is known could ever run the item, and its submitter asked to be refused then."""

    code = "unsatisfiable"


class Unauthorized(MeshError):
    """No credentials, or wrong ones."""

    code = "unauthorized"
    status = 401


class Forbidden(MeshError):
    """The credentials do not allow this."""

    code = "forbidden"
    status = 403


class Unavailable(MeshError):
    """Something this needs is away; the same request may succeed later."""

    code = "unavailable"
    status = 503
    retryable = True


class NobodyAnswers(Unavailable):
    """No service listens on the subject."""

    code = "nobody_answers"


class Disconnected(Unavailable):
    """There is no connection to NATS at the moment."""

    code = "disconnected"


class TimedOut(Unavailable):
    """No answer came in time. What was asked may or may not have happened."""

    code = "timed_out"
    status = 504


class StreamFull(Unavailable):
    """The stream has reached its size limit and refuses new messages."""

    code = "stream_full"


class WrongSetting(MeshError):
    """A setting is missing or has a value that is not allowed. Ends the process at start, in one sentence."""

    code = "wrong_setting"


class Internal(MeshError):
    """A bug, told to strangers without detail."""

    code = "internal"


def error_named(code: str, message: str, details: Mapping[str, object]) -> MeshError:
    """Rebuild, on the asker's side, the error that was answered. An unknown code becomes a plain `MeshError`."""
    kind = _by_code().get(code)
    if kind is not None:
        return kind(message, **details)
    error = MeshError(message, **details)
    error.code = code  # type: ignore[misc]  # a code of a newer version than ours is passed on as it came
    return error


def _by_code() -> dict[str, type[MeshError]]:
    """A kind that is told to nobody has its parent's code, and does not stand for it."""
    found: dict[str, type[MeshError]] = {}
    open_kinds = MeshError.__subclasses__()
    while open_kinds:
        kind = open_kinds.pop()
        found.setdefault(kind.code, kind)
        open_kinds.extend(kind.__subclasses__())
    return found
