"""An observer that remembers, for tests that ask what was counted."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from libs.common.bus.observer import Kind, outcome_of


class RecordingObserver:
    def __init__(self, outgoing: Mapping[str, str] | None = None) -> None:
        self.handled: list[tuple[Kind, str, str]] = []
        self.sendings: list[tuple[Kind, str, str]] = []
        self.unreadable: list[str] = []
        self.dead: list[tuple[str, str]] = []
        self._outgoing = outgoing or {}

    def outgoing(self) -> Mapping[str, str]:
        return self._outgoing

    @contextmanager
    def handling(self, kind: Kind, subject: str, headers: Mapping[str, str]) -> Iterator[None]:
        outcome = "ok"
        try:
            yield
        except BaseException as error:
            outcome = outcome_of(error)
            raise
        finally:
            self.handled.append((kind, subject, outcome))

    def sent(self, kind: Kind, subject: str, outcome: str) -> None:
        self.sendings.append((kind, subject, outcome))

    def malformed(self, subject: str) -> None:
        self.unreadable.append(subject)

    def dead_lettered(self, subject: str, reason_code: str) -> None:
        self.dead.append((subject, reason_code))
