"""Objects: named bytes that are too large for a message. Laid out as NATS does, so that `nats object` reads them.

An object is a row of messages on a subject of its own, and one message that says how many they are, and their digest.
It is there once that last message is; what is left of one that was never finished takes room until it is removed.
"""

import asyncio
import base64
import binascii
import hashlib
import json
from collections.abc import Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import uuid4

from libs.common.bus.transport import Stored, Transport
from libs.common.contracts.base import ObjectRef
from libs.common.contracts.streams import ObjectBucket
from libs.common.errors import Malformed, MeshError, NotFound, Unavailable

CHUNK_BYTES = 256 * 1024
PART_SECONDS = 10.0
READ_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What is known of an object without reading it. `at` is when it was finished."""

    ref: ObjectRef
    chunks: int
    chunk_subject: str
    at: datetime
    sequence: int


class Objects:
    """The objects of one bucket, which must have been declared as its stream."""

    def __init__(self, transport: Transport, bucket: ObjectBucket) -> None:
        self._transport = transport
        self._bucket = bucket
        self._stream = bucket.stream.name

    async def put(self, name: str, content: bytes) -> ObjectRef:
        """Keep it under this name; one that was there before is replaced.

        Raises `StreamFull`, `TimedOut`, `Disconnected`: then it is not there, or as it was before.
        """
        before = await self.find(name)
        ref = ObjectRef(name=name, digest=digest_of(content), bytes=len(content))
        if before is not None and before.ref == ref:
            return ref
        nuid = uuid4().hex[:22]
        chunk_subject = f"$O.{self._bucket.name}.C.{nuid}"
        try:
            chunks = await self._append_chunks(chunk_subject, content)
            sequence = await self._append_meta(ref, nuid, chunks)
        except BaseException:
            with suppress(MeshError):
                await self._purge(chunk_subject)
            raise
        if before is not None:
            await self._transport.purge(self._stream, below=sequence, subject=self._meta_subject(name))
            await self._purge(before.chunk_subject)
        return ref

    async def get(self, ref: ObjectRef) -> bytes:
        """Raises `NotFound`, `Malformed` when it is another one than the reference says, `Unavailable`."""
        found = await self.find(ref.name)
        if found is None:
            raise NotFound(f"there is no object {ref.name}", object=ref.name)
        try:
            async with asyncio.timeout(READ_SECONDS):
                content = await self._read(found)
        except TimeoutError:
            raise Unavailable(f"the object {ref.name} did not come within {READ_SECONDS:g} s") from None
        if len(content) != ref.bytes or digest_of(content) != ref.digest:
            raise Malformed(f"the object {ref.name} is not the one that is meant: its digest differs", object=ref.name)
        return content

    async def find(self, name: str) -> ObjectInfo | None:
        stored = await self._transport.last(self._stream, self._meta_subject(name))
        return None if stored is None else _info(self._bucket, name, stored)

    async def remove(self, name: str) -> None:
        """It may be gone already."""
        found = await self.find(name)
        await self._purge(self._meta_subject(name))
        if found is not None:
            await self._purge(found.chunk_subject)

    async def names(self) -> Sequence[str]:
        """Of all that were finished."""
        prefix = self._meta_subject("")
        subjects = await self._transport.subjects(self._stream, f"{prefix}>")
        return [name for subject in subjects if (name := _name(subject.removeprefix(prefix))) is not None]

    async def size(self) -> int:
        """What all of them take on the disk, in bytes."""
        return (await self._transport.stream_state(self._stream)).bytes

    async def _append_chunks(self, subject: str, content: bytes) -> int:
        """One after the other: their order in the stream is that in the object."""
        chunks = [content[at : at + CHUNK_BYTES] for at in range(0, len(content), CHUNK_BYTES)]
        for chunk in chunks:
            await self._transport.append(subject, chunk, {}, message_id=None, timeout=PART_SECONDS)
        return len(chunks)

    async def _append_meta(self, ref: ObjectRef, nuid: str, chunks: int) -> int:
        meta = {
            "name": ref.name,
            "bucket": self._bucket.name,
            "nuid": nuid,
            "size": ref.bytes,
            "chunks": chunks,
            "digest": ref.digest,
            "options": {"max_chunk_size": CHUNK_BYTES},
        }
        payload = json.dumps(meta).encode()
        receipt = await self._transport.append(
            self._meta_subject(ref.name), payload, {}, message_id=None, timeout=PART_SECONDS
        )
        return receipt.sequence

    async def _read(self, found: ObjectInfo) -> bytes:
        parts: list[bytes] = []
        if not found.chunks:
            return b""
        messages = self._transport.read(self._stream, after=0, subjects=(found.chunk_subject,))
        async with aclosing(messages):  # type: ignore[type-var]  # an async generator on every transport
            async for batch in messages:
                parts.extend(stored.payload for stored in batch)
                if len(parts) >= found.chunks:
                    break
        return b"".join(parts)

    async def _purge(self, subject: str) -> None:
        last = (await self._transport.stream_state(self._stream)).last_sequence
        await self._transport.purge(self._stream, below=last + 1, subject=subject)

    def _meta_subject(self, name: str) -> str:
        return f"$O.{self._bucket.name}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"


def digest_of(content: bytes) -> str:
    """As NATS writes it."""
    return f"SHA-256={base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode()}"


def _info(bucket: ObjectBucket, name: str, stored: Stored) -> ObjectInfo | None:
    """None for one that was deleted, or that cannot be read."""
    try:
        meta: dict[str, Any] = json.loads(stored.payload)
        if meta.get("deleted"):
            return None
        ref = ObjectRef(name=name, digest=str(meta["digest"]), bytes=int(meta["size"]))
        return ObjectInfo(
            ref=ref,
            chunks=int(meta["chunks"]),
            chunk_subject=f"$O.{bucket.name}.C.{meta['nuid']}",
            at=stored.at,
            sequence=stored.sequence,
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _name(token: str) -> str | None:
    try:
        return base64.urlsafe_b64decode(token).decode()
    except (ValueError, binascii.Error):
        return None
