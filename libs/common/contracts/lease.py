"""What stands in a bucket while somebody holds a lease."""

from pydantic import Field

from libs.common.contracts.base import Identifier, Message


class Holding(Message):
    """`holder` is unique to a process; `written` grows with each renewal: by it the holder knows its own write."""

    holder: Identifier
    written: int = Field(0, ge=0)
