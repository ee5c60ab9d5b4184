"""Streams and buckets as we declare them: brought into being idempotently, and again when the server lost them."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from libs.common.bus.nats.connection import Connection
from libs.common.bus.nats.jetstream import NANOSECONDS, JetStream
from libs.common.bus.nats.refusals import StreamMissing
from libs.common.contracts.streams import Bucket, Stream
from libs.common.errors import Conflict, MeshError, Unavailable

MARKER_SECONDS = 3600
"""How long the server keeps the trace of a key that expired, for those who watch."""


AGAIN_SECONDS = 1.0

_log = structlog.get_logger()


@dataclass(slots=True)
class _Declared:
    """`made` is when the server made it, as it tells."""

    wanted: Mapping[str, Any]
    change: bool
    made: str


class Declarations:
    """A part of the link. `max_bytes` overrides the size limit of streams and buckets (`KV_…`) by name.

    Whatever was declared here once is looked for on every new connection, and whenever it is found missing.
    `made_again` counts what was gone; `problem` says why something stays away.
    """

    def __init__(self, jetstream: JetStream, *, replicas: int, max_bytes: Mapping[str, int]) -> None:
        self.made_again = 0
        self.problem: str | None = None
        self._jetstream = jetstream
        self._replicas = replicas
        self._max_bytes = max_bytes
        self._declared: dict[str, _Declared] = {}
        self._one_at_a_time = asyncio.Lock()
        self._untold: list[str] = []
        self._look = asyncio.Event()
        jetstream.make_again = self._make_again

    async def attach(self, connection: Connection) -> None:
        """JetStream is asked once the connection is in use."""

    def attached(self) -> None:
        self.look()

    def detach(self) -> None:
        """The next connection is looked at."""

    def look(self) -> None:
        """See soon whether everything is there."""
        if self._declared:
            self._look.set()

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            await self._look.wait()
            self._look.clear()
            if await self._all_there():
                self._tell()
            else:
                await asyncio.sleep(AGAIN_SECONDS)
                self._look.set()

    async def _all_there(self) -> bool:
        for name in list(self._declared):
            try:
                await self._make_again(name)
            except Unavailable as error:
                _log.debug("declarations_wait", stream=name, reason=error.message)
                return False
            except MeshError as error:
                self._cannot(name, error)
                return False
        self.problem = None
        return True

    def _cannot(self, name: str, error: MeshError) -> None:
        problem = f"{name} is gone and cannot be made again: {error.message}"
        if problem != self.problem:
            _log.error("stream_not_made_again", stream=name, reason=error.message)
        self.problem = problem

    def _tell(self) -> None:
        if self._untold:
            _log.warning(
                "streams_made_again", streams=self._untold, reason="the nats-server lost them and what was in them"
            )
            self._untold = []

    async def _make_again(self, name: str) -> bool:
        """Whether it is one that was declared; then it is there. Raises what the server refuses."""
        if name not in self._declared:
            return False
        async with self._one_at_a_time:
            declared = self._declared[name]
            there = await self._there(declared.wanted)
            if there["created"] != declared.made:
                await self._adapt(there["config"], declared.wanted, change=declared.change)
                declared.made = there["created"]
                self.made_again += 1
                self._untold.append(name)
                self._look.set()
        return True

    async def ensure_stream(self, stream: Stream, *, change: bool = True) -> None:
        """Without `change` one that is there stays as it is. Raises `Conflict` with what differs where the server
        cannot change it."""
        await self._ensure(
            {
                "name": stream.name,
                "description": stream.summary,
                "subjects": list(stream.subjects),
                "discard": stream.discard,
                "max_bytes": self._max_bytes.get(stream.name, stream.max_bytes),
                "duplicate_window": stream.duplicate_window_seconds * NANOSECONDS,
                "allow_rollup_hdrs": stream.rollup,
            },
            change=change,
        )

    async def ensure_bucket(self, bucket: Bucket) -> None:
        name = f"KV_{bucket.name}"
        await self._ensure(
            {
                "name": name,
                "description": bucket.summary,
                "subjects": [f"$KV.{bucket.name}.>"],
                "discard": "new",
                "max_bytes": self._max_bytes.get(name, bucket.max_bytes),
                "duplicate_window": 120 * NANOSECONDS,
                "max_msgs_per_subject": 1,
                "allow_rollup_hdrs": True,
                "deny_delete": True,
                "allow_msg_ttl": True,
                "subject_delete_marker_ttl": MARKER_SECONDS * NANOSECONDS,
            }
        )

    async def _ensure(self, particular: Mapping[str, Any], *, change: bool = True) -> None:
        wanted = {
            "retention": "limits",
            "storage": "file",
            "num_replicas": self._replicas,
            "allow_direct": True,
            **particular,
        }
        async with self._one_at_a_time:
            there = await self._there(wanted)
            await self._adapt(there["config"], wanted, change=change)
            self._declared[str(wanted["name"])] = _Declared(wanted, change, there["created"])

    async def _there(self, wanted: Mapping[str, Any]) -> Mapping[str, Any]:
        """The stream as the server tells of it; made where it has none."""
        name = str(wanted["name"])
        try:
            return await self._info(name)
        except StreamMissing:
            return await self._create(name, wanted)

    async def _info(self, name: str) -> Mapping[str, Any]:
        return await self._jetstream.call_once(f"STREAM.INFO.{name}", about=name)

    async def _create(self, name: str, wanted: Mapping[str, Any]) -> Mapping[str, Any]:
        """What is there afterwards: ours, or somebody's who was faster."""
        try:
            await self._jetstream.call_once(f"STREAM.CREATE.{name}", wanted, about=name)
        except Conflict as error:
            if error.details.get("jetstream_code") != _NAME_IN_USE:
                raise
        return await self._info(name)

    async def _adapt(self, there: Mapping[str, Any], wanted: Mapping[str, Any], *, change: bool) -> None:
        different = {key: (there.get(key), value) for key, value in wanted.items() if there.get(key) != value}
        if different and change:
            await self._update(str(wanted["name"]), {**there, **wanted}, different)

    async def _update(
        self, name: str, config: Mapping[str, Any], different: Mapping[str, tuple[object, object]]
    ) -> None:
        try:
            await self._jetstream.call_once(f"STREAM.UPDATE.{name}", config, about=name)
        except Conflict as error:
            said = "; ".join(f"{key} is {there!r}, not {ours!r}" for key, (there, ours) in different.items())
            raise Conflict(f"The stream {name} exists and cannot be changed: {said} ({error.message})") from error


_NAME_IN_USE = 10058
