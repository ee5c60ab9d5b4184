"""The table of `docs/faults.md`, from the raw results of one run."""

from collections.abc import Mapping, Sequence
from typing import Any

from docs.generate.markdown import table as markdown_table

HEAD = (
    "fault",
    "what was done",
    "running at the kills",
    "submitted",
    "accepted",
    "ended once",
    "lost",
    "doubled",
    "seed",
)

INTRODUCTION = """\
# Faults

<!-- Written by `python -m tests.faults table` from tests/faults/results.json. Changes made here are lost. -->

What became of the work while the mesh was treated badly. Every row is a mesh of its own: a nats-server on disk, work
marshaling, a node registry and three agents with {slots} slots each, all of them separate processes. Submitters send
work by REST (one by one with ids of their own, in batches without) and by plain NATS, and keep the receipts; each job
writes a line when it begins and one when it ends. Those two are the truth here, no counter of ours.

- **accepted**: the submitter holds a receipt. An item without one was not promised; it counts nowhere else.
- **ended once**: it ended with exactly one counted outcome, that outcome names a run whose last line was written, and
  it is still the same after another kill of work marshaling. Only where outcomes run full, results are pushed out of
  their stream, as is documented: there it is enough that some run of the item wrote its last line.
- **lost**: accepted and not ended. **doubled**: two counted outcomes, an outcome that changed, two items from one
  submission, an outcome that no job stands behind, or a job that ran twice although its process neither had died nor
  stood still for longer than its leases last.
  Where finished work goes to PostgreSQL, lost is also what is not there at the end, and doubled what is there twice or
  with another end.
- **running at the kills**: the least number of jobs in the middle of it when something was done to the mesh.

The settings are those of an installation, except where a row says so, a lease of 10 s and retries that come sooner: so
a job has its usual four attempts. A poison item ends the process of whatever agent runs it, and each needs an agent for
itself at least once before it is dead: starting agents takes most of that row's time. That 1,000 of them among 10,000
good ones harm nobody is shown by `tests/unit/work_marshaling/test_poison.py`, with nodes in memory.

Each row is what its last playing counted: these were played from {first} to {last}, up to three at a time,
on two cores that had other work besides ({seconds:.0f} s in all). A row in which anything was lost or doubled is played
again only after its cause was found. `make faults` plays all of them, one after another.

"""


def table(told: Sequence[Mapping[str, Any]]) -> str:
    rows = [[str(cell) for cell in _cells(row)] for row in told]
    seconds = sum(row["seconds"] for row in told)
    introduction = INTRODUCTION.format(
        seconds=seconds, first=min(row["at"] for row in told), last=max(row["at"] for row in told), slots=60
    )
    return introduction + markdown_table(HEAD, rows) + "\n" + _again(told)


def _cells(row: Mapping[str, Any]) -> tuple[object, ...]:
    return (
        row["fault"],
        row["done"],
        "-" if row["least_running"] is None else row["least_running"],
        row["submitted"],
        row["accepted"],
        row["ended_once"],
        row["lost"],
        row["doubled"],
        row["seed"],
    )


def _again(told: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"- {row['fault']}: {row['ran_again']} items" for row in told if row["ran_again"]]
    return (
        "\nA job whose process died, or was given up because it stood still, is run again, and so is one that failed "
        "(one in twenty does, the first time). Its item counts once all the same:\n\n" + "\n".join(lines) + "\n"
    )
