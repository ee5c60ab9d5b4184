"""One row from the first process to the count."""

import asyncio
import random
import shutil
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.faults.crowd import Crowd
from tests.faults.rows import Row, Scene, prepare_clock, step_clock
from tests.faults.stage import Stage, database, small_disk, stage
from tests.faults.truth import count, count_archived

SETTLE_SECONDS = 90.0


async def play(row: Row, seed: int, *, scale: float = 1.0, keep: Path | None = None) -> dict[str, Any]:
    """Returns what is written into the raw results."""
    with ExitStack() as held:
        if keep is None:
            folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
        else:
            folder = keep / row.name.replace(" ", "-")
            shutil.rmtree(folder, ignore_errors=True)
        store = held.enter_context(small_disk(folder / "disk", row.store_mib)) if row.store_mib else None
        archive = held.enter_context(database()) if row.archive else None
        made = held.enter_context(
            stage(
                folder,
                row.settings,
                store=store,
                archive=archive,
                agents=row.agents,
                slots=row.slots,
                forked=row.forked,
            )
        )
        if row.act is step_clock:
            prepare_clock(made)
        if row.standby:
            made.others.append(made.another_marshaling("marshaling-2"))
        await asyncio.to_thread(made.start)
        return await _on(made, row, seed, scale)


async def _on(made: Stage, row: Row, seed: int, scale: float) -> dict[str, Any]:
    started = time.monotonic()
    chance = random.Random(f"{seed} {row.name}")
    crowd = Crowd(made, chance, most=max(400, round(row.most * scale)))
    crowd.padding = row.padding
    crowd.short_again = row.short_again
    crowd.results_go = row.results_go
    watching = asyncio.create_task(crowd.watch())
    submitting = asyncio.create_task(crowd.submit())
    try:
        done = await row.act(Scene(stage=made, crowd=crowd, chance=chance, scale=scale))
        crowd.all_was_done()
        if not row.whole:
            crowd.enough()
        await submitting
        await crowd.settle(SETTLE_SECONDS)
        evidence = await crowd.evidence()
        found = count(evidence)
        if made.archive is not None:
            archived = await asyncio.to_thread(made.archive_rows, found.ended_once, SETTLE_SECONDS)
            count_archived(found, evidence, archived)
    finally:
        for task in (watching, submitting):
            task.cancel()
        await asyncio.gather(watching, submitting, return_exceptions=True)
        await crowd.close()
    return {
        "fault": row.name,
        "done": done,
        "seed": seed,
        "at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "least_running": crowd.least_running,
        "refusals": crowd.refusals,
        "seconds": round(time.monotonic() - started, 1),
        **asdict(found),
    }
