"""What the bus tells about its own work, and what travels beside every message.

The bus says what happened; how it is counted, traced and shown is the observer's business (the kit has one for
Prometheus and OpenTelemetry).
"""

import re
import secrets
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar, Token
from typing import Literal, Protocol

from libs.common.errors import MeshError

CORRELATION_HEADER = "Correlation-Id"
Kind = Literal["publish", "request", "append", "subscribe", "serve", "consume"]

_correlation_id: ContextVar[str | None] = ContextVar("correlation_id", default=None)
_TRUSTED = re.compile(r"[\x21-\x7e]{1,128}")


class Observer(Protocol):
    """`subject` is always a topic's or call's own subject, never with a node's token: it is safe as a metric label."""

    def outgoing(self) -> Mapping[str, str]:
        """Headers that a message sent at this moment carries (the trace context)."""
        ...

    def handling(self, kind: Kind, subject: str, headers: Mapping[str, str]) -> AbstractContextManager[None]:
        """Entered while a message is handled. The handler's exception passes through it: see `outcome_of`."""
        ...

    def sent(self, kind: Kind, subject: str, outcome: str) -> None:
        """A message was sent, or could not be. `outcome` is `ok` or an error's code."""
        ...

    def malformed(self, subject: str) -> None:
        """A message could not be read."""
        ...

    def dead_lettered(self, subject: str, reason_code: str) -> None:
        """A durable message was kept as a dead letter."""
        ...


class SilentObserver:
    """Tells nobody. For tests and small tools."""

    def outgoing(self) -> Mapping[str, str]:
        return {}

    def handling(self, kind: Kind, subject: str, headers: Mapping[str, str]) -> AbstractContextManager[None]:
        return nullcontext()

    def sent(self, kind: Kind, subject: str, outcome: str) -> None:
        return None

    def malformed(self, subject: str) -> None:
        return None

    def dead_lettered(self, subject: str, reason_code: str) -> None:
        return None


def outcome_of(error: BaseException | None) -> str:
    """How a piece of work ended, in one word: `ok`, `cancelled`, an error's code, or `internal` for a bug."""
    if error is None:
        return "ok"
    if isinstance(error, MeshError):
        return error.code
    return "internal" if isinstance(error, Exception) else "cancelled"


def correlation_id() -> str | None:
    """The id that joins everything that follows from one request or message; None outside of any."""
    return _correlation_id.get()


class Correlated:
    """Everything sent inside carries this correlation id; a new one where none, or an unfit one, was given.

    Around every message: a generator would take three times as long.
    """

    __slots__ = ("_chosen", "_token")

    def __init__(self, given: str | None) -> None:
        self._chosen = given if given is not None and _TRUSTED.fullmatch(given) else secrets.token_hex(16)
        self._token: Token[str | None] | None = None

    def __enter__(self) -> str:
        self._token = _correlation_id.set(self._chosen)
        return self._chosen

    def __exit__(self, *_: object) -> None:
        if self._token is not None:
            _correlation_id.reset(self._token)
