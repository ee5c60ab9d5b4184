"""Dramatiq on Redis: it acknowledges after the run by itself."""

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from benchmarks.peers.marks import ran

dramatiq.set_broker(RedisBroker(url=os.environ.get("STORE_URL")))
noop = dramatiq.actor(ran, actor_name="noop")


async def submit(payloads: list[str]) -> None:
    for payload in payloads:
        noop.send(payload)
