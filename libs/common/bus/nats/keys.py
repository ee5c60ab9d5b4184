"""Keys and values, laid out as NATS KV does, so that `nats kv` reads them."""

from collections.abc import AsyncIterator

from libs.common.bus.nats.append import Appender
from libs.common.bus.nats.jetstream import JetStream
from libs.common.bus.nats.reading import Batch, OrderedReader
from libs.common.bus.nats.streams import MARKER_SECONDS
from libs.common.bus.transport import Entry, Expect, Headers, Stored
from libs.common.errors import Malformed, WrongRevision

_OPERATION = "KV-Operation"
_MARKER = "Nats-Marker-Reason"
_TTL = "Nats-TTL"


class Keys:
    def __init__(self, jetstream: JetStream, appender: Appender) -> None:
        self._jetstream = jetstream
        self._appender = appender

    async def get(self, bucket: str, key: str) -> Entry | None:
        last = await self._jetstream.last(f"KV_{bucket}", f"$KV.{bucket}.{key}")
        return None if last is None or _is_gone(last) else Entry(key=key, payload=last.payload, revision=last.sequence)

    async def put(
        self, bucket: str, key: str, payload: bytes, *, revision: int, ttl_seconds: int | None, timeout: float
    ) -> int:
        if ttl_seconds is not None and ttl_seconds < 1:
            raise Malformed("A key lives at least one second", ttl_seconds=ttl_seconds)
        headers = {} if ttl_seconds is None else {_TTL: f"{ttl_seconds}s"}
        return await self._write(bucket, key, payload, headers, revision, timeout)

    async def delete(self, bucket: str, key: str, *, revision: int, timeout: float) -> None:
        headers = {_OPERATION: "DEL", _TTL: f"{MARKER_SECONDS}s"}
        await self._write(bucket, key, b"", headers, revision, timeout)

    async def _write(
        self, bucket: str, key: str, payload: bytes, headers: Headers, revision: int, timeout: float
    ) -> int:
        subject = f"$KV.{bucket}.{key}"
        try:
            return await self._append(subject, payload, headers, revision, timeout)
        except WrongRevision:
            # For the server, the trace of a deleted or expired key counts as its newest revision.
            trace = None if revision else await self._jetstream.last(f"KV_{bucket}", subject)
            if trace is None or not _is_gone(trace):
                raise
            return await self._append(subject, payload, headers, trace.sequence, timeout)

    async def _append(self, subject: str, payload: bytes, headers: Headers, revision: int, timeout: float) -> int:
        receipt = await self._appender.append(
            subject, payload, headers, message_id=None, expect=Expect(sequence=revision), timeout=timeout
        )
        return receipt.sequence


def _is_gone(stored: Stored) -> bool:
    return _MARKER in stored.headers or stored.headers.get(_OPERATION) in ("DEL", "PURGE")


class Watch:
    """Tells every key's value, then each change.

    Each time its reader starts anew (the server was away) it compares all keys with what it told before, so that also
    those are told that vanished meanwhile without leaving a trace. In a bucket that was made anew every key is new.
    """

    def __init__(self, bucket: str, reader: OrderedReader) -> None:
        self._cut = len(f"$KV.{bucket}.")
        self._reader = reader
        self._told: dict[str, int] = {}
        self._restarts = 0
        self._made: str | None = None
        self._missing: set[str] = set()

    async def entries(self) -> AsyncIterator[Entry]:
        while True:
            batch = await self._reader.batch()
            for entry in self._compare(batch):
                yield entry

    def _compare(self, batch: Batch) -> list[Entry]:
        if batch.restarts != self._restarts:
            self._restarts = batch.restarts
            self._missing = set(self._told)
            if self._made not in (None, batch.made):
                self._told = dict.fromkeys(self._told, 0)
            self._made = batch.made
        changes = [entry for stored in batch.messages if (entry := self._change(stored)) is not None]
        if self._missing and not batch.pending:
            changes += [Entry(key=key, payload=None, revision=self._told.pop(key)) for key in sorted(self._missing)]
            self._missing = set()
        return changes

    def _change(self, stored: Stored) -> Entry | None:
        key = stored.subject[self._cut :]
        self._missing.discard(key)
        before = self._told.get(key)
        if _is_gone(stored):
            self._told.pop(key, None)
            return None if before is None else Entry(key=key, payload=None, revision=stored.sequence)
        if before == stored.sequence:
            return None
        self._told[key] = stored.sequence
        return Entry(key=key, payload=stored.payload, revision=stored.sequence)
