"""procrastinate on PostgreSQL, which syncs every commit. It has a batch call, and a listener instead of polling."""

import os

from procrastinate import App, PsycopgConnector

from benchmarks.peers.marks import ran

app = App(connector=PsycopgConnector(conninfo=os.environ.get("STORE_URL", "")))


@app.task(name="noop")
async def noop(payload: str) -> None:
    ran(payload)


_open: list[bool] = []


async def submit(payloads: list[str]) -> None:
    if not _open:
        await app.open_async()
        _open.append(True)
    if len(payloads) == 1:
        await noop.defer_async(payload=payloads[0])
    else:
        await noop.batch_defer_async(*({"payload": payload} for payload in payloads))
