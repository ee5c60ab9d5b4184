"""The ledger and the reservations in it, as one thing in memory. Whoever changes it does so in one step."""

from collections.abc import Iterable, Mapping, Sequence

from libs.common.contracts.gpu_orchestrator import FitQuestion, GpuState
from libs.common.contracts.node_registry import GpuLink
from services.gpu_orchestrator.choosing import Choice, Ranks, Wish, choose, ranks_of
from services.gpu_orchestrator.devices import eligible, indices, named
from services.gpu_orchestrator.ledger import reclaimed, refresh, with_growth
from services.gpu_orchestrator.machine import Held
from services.gpu_orchestrator.model import Claim, Device, Entry, Event, Rules


class Book:
    """`kept_ended`: how many reservations that ended can be asked for. `indices`: of the GPUs that were measured."""

    def __init__(self, rules: Rules, *, kept_ended: int = 1000) -> None:
        self._rules = rules
        self._kept_ended = kept_ended
        self._open: dict[str, Held] = {}
        self._ended: dict[str, Held] = {}
        self._claims: dict[str, dict[str, int]] = {}
        self._used_mb: Mapping[str, int | None] = {}
        self.ledger: dict[str, Entry] = {}
        self.states: Sequence[GpuState] = ()
        self._links: Sequence[GpuLink] = ()
        self._ranks: Ranks = {}
        self.indices: Mapping[str, int] = {}
        self._eligible: Sequence[str] = ()
        self.last_token = 0
        self.version = 0

    def all(self) -> list[Held]:
        """In the order in which they were made."""
        return sorted([*self._ended.values(), *self._open.values()], key=lambda held: held.token)

    @property
    def open_count(self) -> int:
        return len(self._open)

    def open_ones(self) -> list[Held]:
        return list(self._open.values())

    def find(self, reservation_id: str) -> Held | None:
        return self._open.get(reservation_id) or self._ended.get(reservation_id)

    def measured(
        self, states: Sequence[GpuState], links: Sequence[GpuLink], devices: Sequence[Device], now: float
    ) -> tuple[Event, ...]:
        self.states = states
        if links != self._links:
            self._links, self._ranks = links, ranks_of(links)
        self.indices, self._eligible = indices(states), eligible(states)
        self._used_mb = {device.uuid: device.used_mb for device in devices}
        claims = [claim for held in self._open.values() for claim in held.claims()]
        self.ledger, events = refresh(claims, devices, self.ledger, now, self._rules)
        return events

    def looked_at(self, used_mb: Mapping[str, int | None]) -> bool:
        """So much is in use now. Whether that is exactly what was measured; if not, growth is kept from everybody."""
        as_measured = True
        for uuid, used in used_mb.items():
            entry, measured = self.ledger.get(uuid), self._used_mb.get(uuid)
            if used is None or used != measured:
                as_measured = False
            if entry is not None and used is not None and measured is not None:
                grown = max(0, used - measured)
                if grown != entry.grown_mb:
                    self.ledger[uuid] = with_growth(entry, grown)
        return as_measured

    def bears(self, held: Held) -> bool:
        """Whether there is room for all that is promised on the devices of this one, as they were looked at last."""
        entries = [self.ledger.get(claim.device) for claim in held.claims()]
        return all(
            entry is not None and entry.problem is None and entry.free_mb is not None and entry.short_mb == 0
            for entry in entries
        )

    def knows(self, used_mb: Mapping[str, int | None]) -> bool:
        """Whether these are devices that were measured, and tell how much of them is in use."""
        return all(used is not None and self._used_mb.get(uuid) is not None for uuid, used in used_mb.items())

    def choice(self, asked: FitQuestion) -> Choice:
        """Raises `Malformed` when a GPU is named that is not here."""
        wish = Wish(
            gpu_count=asked.count,
            required_mb=asked.required_mb,
            ram_mb=asked.ram_mb,
            uuids=named(self.states, asked.gpu_indices, asked.gpu_uuids),
            prefer_nvlink=asked.prefer_nvlink,
        )
        return choose(wish, self.ledger, self._eligible, self._ranks)

    def next_token(self) -> int:
        self.last_token += 1
        return self.last_token

    def put(self, changed: Iterable[Held]) -> None:
        for held in changed:
            claims = held.claims()
            self._take(held, claims)
            if held.is_open:
                self._open[held.reservation_id] = held
                for claim in claims:
                    self._claims.setdefault(claim.device, {})[held.reservation_id] = claim.claim_mb
            else:
                self._ended[held.reservation_id] = held
                if len(self._ended) > self._kept_ended:
                    del self._ended[next(iter(self._ended))]
            self._reclaim(claims)

    def remove(self, held: Held) -> None:
        """As if it had never been; its token is not used again."""
        claims = held.claims()
        self._take(held, claims)
        self._reclaim(claims)

    def _take(self, held: Held, claims: Iterable[Claim]) -> None:
        self.version += 1
        self._open.pop(held.reservation_id, None)
        self._ended.pop(held.reservation_id, None)
        for claim in claims:
            self._claims.get(claim.device, {}).pop(held.reservation_id, None)

    def _reclaim(self, claims: Iterable[Claim]) -> None:
        for claim in claims:
            entry = self.ledger.get(claim.device)
            if entry is not None:
                self.ledger[claim.device] = reclaimed(entry, self._claims.get(claim.device, {}))
