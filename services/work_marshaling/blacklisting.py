"""Keeps the blacklist: looks at the nodes' conduct every second, does what operators say, and tells both."""

from datetime import timedelta

import structlog

from libs.common.bus.bus import Bus
from libs.common.clock import Clock
from libs.common.contracts.work_blacklist import BLACKLIST, Blacklist, BlacklistEntry, BlacklistNode
from libs.common.contracts.work_log import Blacklisted, Paroled
from libs.common.errors import NotFound, Unavailable
from services.work_marshaling.conduct import parole
from services.work_marshaling.leading import Leadership, Leading
from services.work_marshaling.term import Term

LOOK_SECONDS = 1.0

_log = structlog.get_logger()


class Blacklisting:
    """What is asked of it needs the leader; `Unavailable` says that this instance is not it now."""

    def __init__(self, *, bus: Bus, clock: Clock, leading: Leading) -> None:
        self._bus = bus
        self._clock = clock
        self._leading = leading

    async def entries(self) -> Blacklist:
        """Listed ones first, then those on parole."""
        known = self._leading.present.term.memory.conduct.values()
        told = sorted(map(_entry, known), key=lambda each: (not each.listed, each.node_id, each.model_name or ""))
        return Blacklist(entries=tuple(told))

    async def of_node(self, node_id: str) -> Blacklist:
        """Raises `NotFound` when nothing is listed of it and it is not on parole."""
        told = tuple(each for each in (await self.entries()).entries if each.node_id == node_id)
        if not told:
            raise NotFound(f"{node_id[:128]} is not on the blacklist")
        return Blacklist(entries=told)

    async def add(self, node_id: str, asked: BlacklistNode) -> BlacklistEntry:
        """By an operator's word, also a node that is not known yet."""
        now = self._clock.now()
        fact = Blacklisted(
            node_id=node_id,
            at=now,
            until=None if asked.seconds is None else now + timedelta(seconds=asked.seconds),
            reason=asked.reason,
            by="operator",
        )
        await _keep(self._bus, self._leading.present.term, (fact,))
        return _entry(fact)

    async def remove(self, node_id: str) -> Blacklist:
        """Everything that is listed of a node is on parole. Raises `NotFound` when nothing is."""
        term = self._leading.present.term
        listed = {
            key: fact
            for key, fact in term.memory.conduct.items()
            if key[0] == node_id and isinstance(fact, Blacklisted)
        }
        if not listed:
            raise NotFound(f"{node_id[:128]} is not on the blacklist")
        now = self._clock.now()
        why = "taken off by an operator"
        facts = tuple(parole(key, fact, now, by="operator", reason=why) for key, fact in listed.items())
        await _keep(self._bus, term, facts)
        return Blacklist(entries=tuple(map(_entry, facts)))


async def watch_conduct(bus: Bus, clock: Clock, leadership: Leadership) -> None:
    """Runs until cancelled, during a leadership."""
    term = leadership.term
    while True:
        await _keep(bus, term, tuple(term.conduct.due(term.memory.conduct, clock.now())))
        await clock.sleep(LOOK_SECONDS)


async def _keep(bus: Bus, term: Term, facts: tuple[Blacklisted | Paroled, ...]) -> None:
    """Told once it is on disk."""
    if not facts:
        return
    term.keep(facts)
    await term.journal.flushed()
    for fact in facts:
        entry = _entry(fact)
        _log.warning("blacklist_changed", node_id=entry.node_id, listed=entry.listed, reason=entry.reason)
        try:
            await bus.publish(BLACKLIST, entry)
        except Unavailable as error:
            _log.info("blacklist_not_told", node_id=entry.node_id, reason=error.message)


def _entry(fact: Blacklisted | Paroled) -> BlacklistEntry:
    listed = isinstance(fact, Blacklisted)
    return BlacklistEntry(
        node_id=fact.node_id,
        model_name=fact.model_name,
        listed=listed,
        since=fact.at,
        until=fact.until if isinstance(fact, Blacklisted) else None,
        reason=fact.reason,
        failure_rate=fact.failure_rate if isinstance(fact, Blacklisted) else None,
        strikes=fact.strikes,
        by=fact.by,
    )
