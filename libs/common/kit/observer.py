"""What the bus tells about itself, as metrics and traces."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from libs.common.bus.observer import Kind
from libs.common.kit.metrics import Metrics
from libs.common.kit.tracing import NoTracing, Tracing


class KitObserver:
    """The bus's `Observer` of one service."""

    def __init__(self, metrics: Metrics, tracing: Tracing) -> None:
        self._metrics = metrics
        self._tracing = None if isinstance(tracing, NoTracing) else tracing

    def outgoing(self) -> Mapping[str, str]:
        return {} if self._tracing is None else self._tracing.outgoing()

    def handling(self, kind: Kind, subject: str, headers: Mapping[str, str]) -> AbstractContextManager[None]:
        if self._tracing is None:
            return self._metrics.handling(kind, subject)
        return self._traced(self._tracing, kind, subject, headers)

    def sent(self, kind: Kind, subject: str, outcome: str) -> None:
        self._metrics.sent(kind, subject, outcome)

    def malformed(self, subject: str) -> None:
        self._metrics.malformed(subject)

    def dead_lettered(self, subject: str, reason_code: str) -> None:
        self._metrics.dead_lettered(subject, reason_code)

    @contextmanager
    def _traced(self, tracing: Tracing, kind: Kind, subject: str, headers: Mapping[str, str]) -> Iterator[None]:
        with tracing.span(kind, subject, headers), self._metrics.handling(kind, subject):
            yield
