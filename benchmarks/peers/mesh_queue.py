"""Ours: work marshaling and a node agent with the no-op function. Many are submitted by REST, one by nats-py."""

import json
import os

import httpx
import nats
from nats.js import JetStreamContext

MARSHALING = ("-m", "services", "work_marshaling")
WORKER = ("-m", "services", "node_agent")
SETTINGS = {
    "ENGINE": "none",
    "AGENT_FUNCTIONS": "noop=benchmarks.peers.marks:ran",
    "AGENT_FUNCTION_SLOTS": "100",
}

_streams: list[JetStreamContext] = []


async def submit(payloads: list[str]) -> None:
    items = [{"work_type": "function", "payload": {"function": "noop", "arguments": each}} for each in payloads]
    if len(items) == 1:
        if not _streams:
            _streams.append((await nats.connect(os.environ["NATS_URL"])).jetstream())
        await _streams[0].publish("compute.work.submit.v1", json.dumps(items[0]).encode())
        return
    async with httpx.AsyncClient(base_url=os.environ["WORK_MARSHALING_URL"], timeout=60) as client:
        answer = await client.post("/api/v1/work/submit-batch", json={"items": items})
        assert answer.json()["refused"] == 0, answer.text[:500]
