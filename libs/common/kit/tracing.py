"""W3C trace context through NATS and HTTP headers. Needs the optional extra `tracing`; off, nothing is imported."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Tracing(Protocol):
    def outgoing(self) -> Mapping[str, str]:
        """Headers that carry the present trace context."""
        ...

    def span(self, kind: str, name: str, headers: Mapping[str, str]) -> AbstractContextManager[None]:
        """A span that continues the trace in `headers`. The exception that passes through is recorded."""
        ...


class NoTracing:
    """Tracing is off."""

    def outgoing(self) -> Mapping[str, str]:
        return {}

    def span(self, kind: str, name: str, headers: Mapping[str, str]) -> AbstractContextManager[None]:
        return nullcontext()
