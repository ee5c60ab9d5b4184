"""The table of `docs/faults.md`, from the raw results of one run."""

from collections.abc import Mapping, Sequence
from typing import Any

from docs.generate.markdown import table as markdown_table
from tests.faults.rows import ROWS
from tests.faults.stage import SLOTS

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
a job has its usual four attempts. A poison item ends the process of whatever agent runs it. In that row there are
{agents} agents of {few_slots} slots; one that died is started again at once, by forking a process that has read its
code, and a job that is run again takes no time. A poison item has to end as `dead` with the error `poison`, and its
attempts have to show three different nodes that died; it needs an agent for itself at least once before that.

All of this was played in one run, `make faults`, which began at {began} and took {minutes} minutes on {processors}
processors, {at_once} faults at a time (load average before: {load_before}). A table is made of one whole run only.

"""


class NotOneRun(Exception):
    """What is there to make a table from is not what one whole run counted."""


def table(told: Mapping[str, Any]) -> str:
    """Raises `NotOneRun`."""
    played = [row["fault"] for row in told["rows"]] if "rows" in told and "began" in told else None
    if played is None:
        raise NotOneRun("the results do not say which run they are from; `make faults` plays one")
    missing = [row.name for row in ROWS if row.name not in played]
    if missing or len(played) != len(ROWS):
        raise NotOneRun(f"the run did not play {', '.join(missing) or 'each fault once'}; `make faults` plays all")
    introduction = INTRODUCTION.format(
        **{name: told[name] for name in ("began", "processors", "at_once", "load_before")},
        minutes=round(told["seconds"] / 60),
        slots=SLOTS,
        agents=next(row.agents for row in ROWS if row.forked),
        few_slots=next(row.slots for row in ROWS if row.forked),
    )
    rows = [[str(cell) for cell in _cells(row)] for row in told["rows"]]
    return introduction + markdown_table(HEAD, rows) + "\n" + _again(told["rows"])


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
