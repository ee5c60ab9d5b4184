"""The ledger and the reservations in it, as one thing in memory. Whoever changes it does so in one step."""

from collections.abc import Iterable, Sequence

from libs.common.contracts.gpu_orchestrator import FitQuestion, GpuState
from libs.common.contracts.node_registry import GpuLink
from services.gpu_orchestrator.choosing import Choice, Wish, choose
from services.gpu_orchestrator.devices import eligible, named
from services.gpu_orchestrator.ledger import reclaimed, refresh
from services.gpu_orchestrator.machine import Held
from services.gpu_orchestrator.model import Claim, Device, Entry, Event, Rules


class Book:
    """`kept_ended`: how many reservations that ended can be asked for."""

    def __init__(self, rules: Rules, *, kept_ended: int = 1000) -> None:
        self._rules = rules
        self._kept_ended = kept_ended
        self._held: dict[str, Held] = {}
        self.ledger: dict[str, Entry] = {}
        self.states: Sequence[GpuState] = ()
        self.links: Sequence[GpuLink] = ()
        self.last_token = 0

    def all(self) -> list[Held]:
        return list(self._held.values())

    def open_ones(self) -> list[Held]:
        return [held for held in self._held.values() if held.is_open]

    def find(self, reservation_id: str) -> Held | None:
        return self._held.get(reservation_id)

    def measured(
        self, states: Sequence[GpuState], links: Sequence[GpuLink], devices: Sequence[Device], now: float
    ) -> tuple[Event, ...]:
        self.states, self.links = states, links
        self.ledger, events = refresh(self._claims(), devices, self.ledger, now, self._rules)
        return events

    def choice(self, asked: FitQuestion) -> Choice:
        """Raises `Malformed` when a GPU is named that is not here."""
        wish = Wish(
            gpu_count=asked.count,
            required_mb=asked.required_mb,
            ram_mb=asked.ram_mb,
            uuids=named(self.states, asked.gpu_indices, asked.gpu_uuids),
            prefer_nvlink=asked.prefer_nvlink,
        )
        return choose(wish, self.ledger, eligible(self.states), self.links)

    def next_token(self) -> int:
        self.last_token += 1
        return self.last_token

    def put(self, changed: Iterable[Held]) -> None:
        for held in changed:
            self._held.pop(held.reservation_id, None)
            self._held[held.reservation_id] = held
        ended = [name for name, held in self._held.items() if not held.is_open]
        for name in ended[: max(0, len(ended) - self._kept_ended)]:
            del self._held[name]
        self.ledger = reclaimed(self.ledger, self._claims())

    def remove(self, held: Held) -> None:
        """As if it had never been; its token is not used again."""
        del self._held[held.reservation_id]
        self.ledger = reclaimed(self.ledger, self._claims())

    def _claims(self) -> list[Claim]:
        return [claim for held in self._held.values() if held.is_open for claim in held.claims()]
