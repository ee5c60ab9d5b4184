"""Objects are those that any other client of NATS puts and gets."""

import nats as nats_py
import pytest

from libs.common.bus.bus import Bus
from libs.common.bus.nats.transport import connect
from libs.common.bus.observer import SilentObserver
from libs.common.clock import SystemClock
from libs.common.contracts.base import ObjectRef
from libs.common.contracts.streams import MIB, ObjectBucket
from tests.nats_process import NatsProcess

BUCKET = ObjectBucket(name="THINGS", summary="Things.", max_bytes=16 * MIB)
CONTENT = b"0123456789" * 60_000


async def test_another_client_reads_what_we_put_and_we_read_what_it_put(nats: NatsProcess):
    async with connect(nats.url, name="test") as transport:
        await transport.ensure_stream(BUCKET.stream)
        objects = Bus(transport, name="test", observer=SilentObserver(), clock=SystemClock()).objects(BUCKET)
        await objects.put("ours", CONTENT)
        client = await nats_py.connect(nats.url)
        store = await client.jetstream().object_store("THINGS")
        got = await store.get("ours")
        info = await store.put("theirs", CONTENT)
        await client.close()

        assert got.data == CONTENT
        ref = ObjectRef(name="theirs", digest=info.digest or "", bytes=len(CONTENT))
        assert await objects.get(ref) == CONTENT
        assert sorted(await objects.names()) == ["ours", "theirs"]


async def test_an_object_that_another_client_deleted_is_gone(nats: NatsProcess):
    async with connect(nats.url, name="test") as transport:
        await transport.ensure_stream(BUCKET.stream)
        objects = Bus(transport, name="test", observer=SilentObserver(), clock=SystemClock()).objects(BUCKET)
        ref = await objects.put("ours", CONTENT)
        client = await nats_py.connect(nats.url)
        await (await client.jetstream().object_store("THINGS")).delete("ours")
        await client.close()

        assert await objects.find("ours") is None
        await objects.put("ours", b"again")
        with pytest.raises(Exception, match="digest"):
            await objects.get(ref)
