"""On three nats-servers with three copies of everything: the whole life of items, and the loss of any one server."""

import asyncio
import random
from contextlib import suppress
from pathlib import Path

import nats as nats_py
from nats.js import JetStreamContext
from nats.js.errors import ServiceUnavailableError

from libs.common.bus.bus import Bus
from libs.common.bus.nats.transport import connect
from libs.common.bus.observer import SilentObserver
from libs.common.clock import SystemClock
from libs.common.contracts.streams import WORK_IN, WORK_LOG, WORK_OUT
from tests.integration.work_marshaling.conftest import Worker, done, eventually, instance, submit_all
from tests.nats_cluster import SERVERS, nats_cluster

ITEMS = 400


async def test_killing_any_one_server_of_a_cluster_loses_and_doubles_nothing(tmp_path: Path):
    with nats_cluster() as cluster:
        marshaling = instance(cluster, tmp_path, "marshaling")
        marshaling.environment["STREAM_REPLICAS"] = str(SERVERS)
        async with marshaling, connect(cluster.url, name="test", replicas=SERVERS) as transport:
            bus = Bus(transport, name="test", observer=SilentObserver(), clock=SystemClock())
            marshaling.start()
            await marshaling.ready()
            worker = Worker(bus, random.Random(7))
            await worker.open()
            submitting = asyncio.create_task(submit_all(marshaling, ITEMS))
            for number, server in enumerate(cluster.servers):
                await eventually(lambda least=ITEMS * number // 5: done(marshaling, least), 60)
                await asyncio.to_thread(server.kill)
                await asyncio.sleep(1)
                await asyncio.to_thread(server.start)
                await asyncio.to_thread(cluster.wait_ready)
            receipts = await submitting
            await eventually(lambda: done(marshaling, ITEMS), 60)
            totals = await marshaling.totals()
            results = [
                (await marshaling.ask("GET", f"/api/v1/work/{work_id}/result", params={"wait_seconds": 5})).json()
                for work_id in receipts
            ]
            client = await nats_py.connect(cluster.servers[0].url)
            await eventually(lambda: all_are_led(client.jetstream()), 60)
            streams = [await client.jetstream().stream_info(each.name) for each in (WORK_IN, WORK_OUT, WORK_LOG)]
            await client.close()
            await worker.close()

    assert (totals["admitted"], totals["completed"]) == (ITEMS, ITEMS)
    assert [told["result"]["echo"]["number"] for told in results] == list(receipts.values())
    assert all(runs == 1 for runs in worker.runs.values())
    assert {each.config.num_replicas for each in streams} == {SERVERS}


async def all_are_led(jetstream: JetStreamContext) -> bool:
    """Each stream is asked for by its name: a list of all leaves out those whose leader does not answer in time, and
    the last server to come back may have led one that nobody needed since."""
    with suppress(nats_py.errors.TimeoutError, ServiceUnavailableError):
        return all([await jetstream.stream_info(each.name) for each in (WORK_IN, WORK_OUT, WORK_LOG)])
    return False
