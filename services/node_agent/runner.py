"""What runs jobs. Port of `runner_openai.py`, `runner_function.py`, `runner_process.py` and
`runner_container.py`."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from libs.common.contracts.work_marshaling import Assignment
from services.node_agent.model import FUNCTION_TYPE, Holder

Tell = Callable[[str], None]
"""Takes partial output as it comes."""

Began = Callable[[Holder], None]
"""Takes who uses the job's memory, as soon as there is somebody."""


def unnoticed(holder: Holder) -> None:
    """Of a job for which no memory was claimed."""


class Runner(Protocol):
    """Runs jobs of some kinds, so many at once. What it says nothing of has the answer that is usual."""

    @property
    def claims_memory(self) -> bool:
        """Whether its jobs bring their own use of memory, and are promised some."""
        return False

    @property
    def slots(self) -> int: ...

    @property
    def lingering(self) -> int:
        """Slots still taken by jobs whose attempts are over, because they could not be ended."""
        ...

    def work_types(self) -> tuple[str, ...]:
        """What it can run now; none when it is not ready."""
        ...

    def refusal(self, assignment: Assignment) -> str | None:
        """Why it would not take this one now, slots aside."""
        return None

    def gpus(self, assignment: Assignment) -> tuple[str, ...] | None:
        """By UUID the GPUs that it is to have, which are kept for it from here on. None: any may be claimed for it."""
        return None

    def decline(self, assignment: Assignment) -> None:
        """It is not run here after all: what was kept for it is free."""
        return

    async def run(self, assignment: Assignment, tell: Tell, began: Began = unnoticed) -> Any:
        """The job's result, as JSON values. Cancelling ends the job. Raises `JobFailed`.

        Called with an attempt that `left` named, it goes on with that job and starts none; the payload is then None.
        """
        ...

    async def left(self, assignments: Sequence[Assignment]) -> frozenset[str]:
        """The tokens of those attempts, begun by an earlier agent, whose jobs still run or ended unseen. Asked once,
        before anything is run; what else an earlier agent left is removed from then on."""
        return frozenset()

    async def forget(self, assignment: Assignment) -> None:
        """The attempt's end is in the journal: what its job left can go."""
        return


class FunctionJobs(Runner):
    """What every runner of functions says of its jobs."""

    def __init__(self, slots: int) -> None:
        self._slots = slots

    @property
    def slots(self) -> int:
        return self._slots

    @property
    def claims_memory(self) -> bool:
        return True

    def work_types(self) -> tuple[str, ...]:
        return (FUNCTION_TYPE,)
