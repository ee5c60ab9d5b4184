"""Reads the fields of a parsed document, and names the field where one is missing or wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from libs.common.errors import Malformed, MeshError


class Unsupported(MeshError):
    """The model is described well, but in a way this planner cannot size; `details.field` names what it is."""

    code: ClassVar[str] = "unsupported_model"
    status: ClassVar[int] = 422


@dataclass(frozen=True, slots=True)
class Fields:
    """A document whose fields are asked for by name; the first of several names that is there counts.

    All readers raise `Malformed` with the field's name and what was found. `null` is the same as absent.
    """

    values: Mapping[str, object]
    where: str = ""

    def has(self, *names: str) -> bool:
        return any(self.values.get(name) is not None for name in names)

    def _find(self, names: Sequence[str]) -> tuple[str, object]:
        for name in names:
            if self.values.get(name) is not None:
                return f"{self.where}{name}", self.values[name]
        return f"{self.where}{names[0]}", None

    def count(self, *names: str, default: int | None = None, least: int = 0) -> int:
        """A whole number of at least `least`."""
        field, value = self._find(names)
        if value is None and default is not None:
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise _wrong(field, value, f"a whole number of at least {least}")
        return value

    def flag(self, *names: str, default: bool = False) -> bool:
        field, value = self._find(names)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise _wrong(field, value, "true or false")
        return value

    def text(self, *names: str, default: str | None = None) -> str:
        field, value = self._find(names)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or not value:
            raise _wrong(field, value, "a word")
        return value

    def texts(self, *names: str) -> tuple[str, ...]:
        """A list of words; absent is empty."""
        field, value = self._find(names)
        if value is None:
            return ()
        if not isinstance(value, (list, tuple)) or not all(isinstance(each, str) for each in value):
            raise _wrong(field, value, "a list of words")
        return tuple(value)

    def counts(self, *names: str) -> tuple[int, ...]:
        """A list of whole numbers; absent is empty."""
        field, value = self._find(names)
        if value is None:
            return ()
        if not isinstance(value, (list, tuple)):
            raise _wrong(field, value, "a list of whole numbers")
        if any(isinstance(each, bool) or not isinstance(each, int) for each in value):
            raise _wrong(field, value, "a list of whole numbers")
        return tuple(value)

    def part(self, *names: str) -> "Fields | None":
        """A document inside this one; None when it is absent."""
        field, value = self._find(names)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise _wrong(field, value, "an object")
        return Fields(value, f"{field}.")


def _wrong(field: str, value: object, expected: str) -> Malformed:
    found = "nothing" if value is None else repr(value)[:80]
    return Malformed(f"{field} must be {expected}, not {found}", field=field)
