"""What an item of work needs of a node, and what it is promised there."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from pydantic import Field, ModelWrapValidatorHandler, PrivateAttr, field_validator, model_validator

from libs.common.contracts.base import Identifier, Message
from libs.common.contracts.node_registry import Demands, Mib, Platform, Tier


def _known(kind: type[StrEnum], name: str | None) -> str | None:
    if name is not None and name.strip().upper() not in (allowed := [str(each) for each in kind]):
        raise ValueError(f"{name!r} is none of {', '.join(allowed)}")
    return name


def unknown_in(kind: type[Message], told: Mapping[Any, Any]) -> tuple[str, ...]:
    """The words of a message that its kind does not have."""
    return tuple(sorted(map(str, told.keys() - kind.model_fields.keys())))


class Requirements(Demands):
    """What a node must have to run an item. The words are those of the node query."""

    prefer_node_ids: tuple[Identifier, ...] = Field((), max_length=1000, description="these first, if they can")
    avoid_node_ids: tuple[Identifier, ...] = Field((), max_length=1000, description="none of these")
    ram_mb: Mib | None = Field(None, description="RAM that is free now, and that is promised to this item alone")
    vram_mb: Mib | None = Field(
        None, description="the same of VRAM, on each of `min_gpu_count` GPUs that satisfy every clause, else on one"
    )

    _unknown: tuple[str, ...] = PrivateAttr(())

    @model_validator(mode="wrap")
    @classmethod
    def _note_what_is_ignored(cls, told: Any, read: ModelWrapValidatorHandler["Requirements"]) -> "Requirements":
        found = read(told)
        if isinstance(told, dict):
            found._unknown = unknown_in(cls, told)
        return found

    @property
    def unknown(self) -> tuple[str, ...]:
        """What was written here and is ignored, as everywhere. But who mistypes a requirement has an item that runs
        anywhere, and should be told."""
        return self._unknown

    @property
    def gpu_count(self) -> int:
        """On how many GPUs `vram_mb` is wanted."""
        return max(1, self.min_gpu_count or 0) if self.vram_mb else 0

    def __eq__(self, other: object) -> bool:
        """What was ignored makes no difference."""
        return isinstance(other, Requirements) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        """Without one pydantic takes it for changeable, and copies the default of every item that asks for nothing."""
        return hash(self.model_dump_json())

    @field_validator("tier", "min_tier")
    @classmethod
    def _tier(cls, name: str | None) -> str | None:
        return _known(Tier, name)

    @field_validator("platform")
    @classmethod
    def _platform(cls, name: str | None) -> str | None:
        return _known(Platform, name)


NO_REQUIREMENTS = Requirements()
"""One for all that ask for nothing: it is known by itself, without being compared."""


class JobMemory(Message):
    """Memory that a job is promised: RAM, and VRAM on each of so many GPUs."""

    ram_mb: Mib = 0
    vram_mb: Mib = 0
    gpu_count: int = Field(0, ge=0, le=1024)
    gpu_uuids: tuple[str, ...] = Field((), description="which ones it got: for the job, and not told by the queue")
