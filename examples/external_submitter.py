"""Submits one item for an outside worker over plain NATS, and waits for its result over REST.

Run it with: python external_submitter.py hello            (needs nats-py and httpx; external_worker.py does the work)
"""

import asyncio
import json
import os
import sys

import httpx
import nats

NATS_URL = os.environ.get("NATS_URL", "nats://127.0.0.1:4222")
WORK_URL = os.environ.get("WORK_MARSHALING_URL", "http://127.0.0.1:8118") + "/api/v1/work"


async def main(text: str) -> None:
    item = {"work_type": "shout", "payload": {"text": text}, "requirements": {"node_ids": ["external"]}}
    connection = await nats.connect(NATS_URL)
    # A request on this subject is answered by the stream: with its receipt the item is on disk, and is not lost.
    receipt = json.loads((await connection.request("compute.work.submit.v1", json.dumps(item).encode())).data)
    print("accepted as number", receipt["seq"], flush=True)
    await connection.close()
    async with httpx.AsyncClient(timeout=70) as http:
        for _ in range(100):  # until the queue has read it
            found = await http.get(f"{WORK_URL}/by-sequence/{receipt['seq']}")
            if found.status_code != httpx.codes.NOT_FOUND:
                break
            await asyncio.sleep(0.1)
        work_id = found.raise_for_status().json()["work_id"]
        ended = await http.get(f"{WORK_URL}/{work_id}/result", params={"wait_seconds": 60})
        print(work_id, ended.raise_for_status().json()["result"])


if __name__ == "__main__":
    asyncio.run(main(" ".join(sys.argv[1:]) or "hello"))
