"""What every log with one fenced writer consists of: epochs, and the records of a service."""

from enum import StrEnum

from pydantic import Field

from libs.common.contracts.base import Message, Moment


class LogEpoch(Message):
    """From here on `holder` alone writes; whoever wrote before is fenced.

    `origins` says when each stream that the writer reads was made: a cursor into a stream that was made anew since
    means nothing. With `checkpoint` the records that follow hold the whole state, until one of kind `done`.
    """

    epoch: int = Field(ge=1)
    holder: str
    at: Moment
    checkpoint: bool = False
    origins: dict[str, Moment] = {}


class RecordKind(StrEnum):
    FACTS = "facts"
    CHECKPOINT = "checkpoint"
    DONE = "done"


class LogRecord(Message):
    """One append: what was decided since the last one. `n` counts from 1 within the epoch."""

    epoch: int = Field(ge=1)
    n: int = Field(ge=1)
    at: Moment
    kind: RecordKind = RecordKind.FACTS
