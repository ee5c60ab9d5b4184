"""Streams and buckets as we declare them, brought into being idempotently."""

from collections.abc import Mapping
from typing import Any

from libs.common.bus.nats.jetstream import NANOSECONDS, JetStream
from libs.common.contracts.streams import Bucket, Stream
from libs.common.errors import Conflict, NotFound

MARKER_SECONDS = 3600
"""How long the server keeps the trace of a key that expired, for those who watch."""


class Declarations:
    """`max_bytes` overrides the size limit of streams and buckets (`KV_…`) by name."""

    def __init__(self, jetstream: JetStream, *, replicas: int, max_bytes: Mapping[str, int]) -> None:
        self._jetstream = jetstream
        self._replicas = replicas
        self._max_bytes = max_bytes

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
        name = str(wanted["name"])
        try:
            there = (await self._jetstream.info(name))["config"]
        except NotFound:
            there = await self._create(name, wanted)
        different = {key: (there.get(key), value) for key, value in wanted.items() if there.get(key) != value}
        if different and change:
            await self._update(name, {**there, **wanted}, different)

    async def _create(self, name: str, wanted: Mapping[str, Any]) -> Mapping[str, Any]:
        """What is there afterwards: ours, or somebody's who was faster."""
        try:
            created = await self._jetstream.call(f"STREAM.CREATE.{name}", wanted, about=name)
        except Conflict as error:
            if error.details.get("jetstream_code") != _NAME_IN_USE:
                raise
            created = await self._jetstream.info(name)
        config: Mapping[str, Any] = created["config"]
        return config

    async def _update(
        self, name: str, config: Mapping[str, Any], different: Mapping[str, tuple[object, object]]
    ) -> None:
        try:
            await self._jetstream.call(f"STREAM.UPDATE.{name}", config, about=name)
        except Conflict as error:
            said = "; ".join(f"{key} is {there!r}, not {ours!r}" for key, (there, ours) in different.items())
            raise Conflict(f"The stream {name} exists and cannot be changed: {said} ({error.message})") from error


_NAME_IN_USE = 10058
