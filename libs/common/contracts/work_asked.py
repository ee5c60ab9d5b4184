"""Work as it is asked for at the REST door."""

from typing import Any

from pydantic import ModelWrapValidatorHandler, PrivateAttr, model_validator

from libs.common.contracts.work_marshaling import WorkItem
from libs.common.contracts.work_requirements import unknown_in


class AskedItem(WorkItem):
    """A work item as it comes to the REST door, whose receipt names what was ignored in it."""

    _unknown: tuple[str, ...] = PrivateAttr(())

    @model_validator(mode="wrap")
    @classmethod
    def _note_what_is_ignored(cls, told: Any, read: ModelWrapValidatorHandler["AskedItem"]) -> "AskedItem":
        found = read(told)
        if isinstance(told, dict):
            found._unknown = unknown_in(cls, told)
        return found

    @property
    def unknown(self) -> tuple[str, ...]:
        """Its fields that do not exist."""
        return self._unknown
