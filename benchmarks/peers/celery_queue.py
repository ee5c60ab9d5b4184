"""Celery on Redis, acknowledging after the run: as it is usually set, it loses what a killed worker had."""

import os

from celery import Celery

from benchmarks.peers.marks import ran

app = Celery("bench", broker=os.environ.get("STORE_URL"))
app.conf.task_acks_late = True
app.conf.task_ignore_result = True
app.conf.broker_connection_retry_on_startup = True
noop = app.task(name="noop")(ran)


async def submit(payloads: list[str]) -> None:
    for payload in payloads:
        noop.delay(payload)
