"""A worker that is no part of the mesh: it takes the work that is meant for `external`, and says how it went.

Run it with: python external_worker.py            (needs nats-py; NATS_URL says where the server is)
"""

import asyncio
import json
import os

import nats
from nats.aio.msg import Msg


def work_on(payload: dict[str, object]) -> dict[str, object]:
    return {"text": str(payload.get("text", "")).upper()}


async def main() -> None:
    connection = await nats.connect(os.environ.get("NATS_URL", "nats://127.0.0.1:4222"))
    stream = connection.jetstream()

    async def on_assignment(message: Msg) -> None:
        work = json.loads(message.data)
        if work["node_id"] != "external":  # everybody's assignments are told on this subject
            return
        outcome = {"work_id": work["work_id"], "result": work_on(work["payload"])}
        # Published to the stream, so it returns only when the outcome is on disk.
        await stream.publish("compute.work.completed.v1", json.dumps(outcome).encode())
        print("completed", work["work_id"], flush=True)

    await connection.subscribe("compute.work.assigned.v1", cb=on_assignment)
    await connection.flush()
    print("waiting for work", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
