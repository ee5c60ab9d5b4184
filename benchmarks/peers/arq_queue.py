"""arq on Redis. It polls: every 10 ms here, as with its usual half a second each item would wait half of that."""

import os
from typing import Any

from arq import create_pool, func
from arq.connections import ArqRedis, RedisSettings

from benchmarks.peers.marks import ran

_pool: list[ArqRedis] = []


async def noop(_: dict[str, Any], payload: str) -> None:
    ran(payload)


class WorkerSettings:
    functions = (func(noop, name="noop", keep_result=0),)
    redis_settings = RedisSettings.from_dsn(os.environ.get("STORE_URL", "redis://"))
    max_jobs = 100
    poll_delay = 0.01


async def submit(payloads: list[str]) -> None:
    if not _pool:
        _pool.append(await create_pool(WorkerSettings.redis_settings))
    for payload in payloads:
        await _pool[0].enqueue_job("noop", payload)
