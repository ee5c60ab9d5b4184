"""All faults are played in one run: the largest first, and never two heavy ones beside one another."""

import asyncio
from typing import Any

from tests.faults.rows import Row, kill_agents
from tests.faults.run import HEAVY, Progress, Run


class MadeUpRun(Run):
    """Plays nothing, and notes what ran beside what."""

    def __init__(self, *rows: Row, at_once: int) -> None:
        super().__init__(rows, [], at_once=at_once, progress=Progress(len(rows)))
        self.begun: list[str] = []
        self.heaviest = 0
        self._beside: set[str] = set()

    async def _played(self, row: Row) -> dict[str, Any] | None:
        self.begun.append(row.name)
        self._beside.add(row.name)
        self.heaviest = max(self.heaviest, sum(name.startswith("heavy") for name in self._beside))
        for _ in range(3 if row.most >= HEAVY else 1):
            await asyncio.sleep(0)
        self._beside.discard(row.name)
        if row.name == "broken":
            self.failed[row.name] = "it could not be played"
            return None
        counted = dict.fromkeys(("accepted", "ended_once", "lost", "doubled", "seconds"), 0)
        return {"fault": row.name, "done": "", "least_running": None, "problems": [], **counted}


def row(name: str, most: int = 1) -> Row:
    return Row(name=name, act=kill_agents, most=most)


async def test_every_row_is_played_once_and_told_in_the_order_of_the_table():
    rows = [row("b"), row("heavy-1", HEAVY), row("a", 3), row("heavy-2", HEAVY + 1), row("heavy-3", HEAVY + 2)]
    run = MadeUpRun(*rows, at_once=2)

    told = await run.play_all()

    assert [each["fault"] for each in told["rows"]] == ["b", "heavy-1", "a", "heavy-2", "heavy-3"]
    assert run.begun[0] == "heavy-3"
    assert sorted(run.begun) == sorted(each.name for each in rows)
    assert run.heaviest == 1


async def test_a_row_that_cannot_be_played_does_not_end_the_run():
    run = MadeUpRun(row("broken", 9), row("a"), at_once=1)

    told = await run.play_all()

    assert [each["fault"] for each in told["rows"]] == ["a"]
    assert run.failed == {"broken": "it could not be played"}
