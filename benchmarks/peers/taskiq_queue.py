"""taskiq on JetStream, with a pull consumer."""

import os

from taskiq_nats import PullBasedJetStreamBroker

from benchmarks.peers.marks import ran

broker = PullBasedJetStreamBroker(servers=[os.environ.get("STORE_URL", "")], stream_name="bench", durable="bench")


@broker.task(task_name="noop")
async def noop(payload: str) -> None:
    ran(payload)


_started: list[bool] = []


async def submit(payloads: list[str]) -> None:
    if not _started:
        await broker.startup()
        _started.append(True)
    for payload in payloads:
        await noop.kiq(payload)
