"""How a setting is named in the environment, what it allows, and how a wrong value is told to a person."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AliasChoices, SecretBytes, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined
from pydantic_settings import BaseSettings

_PASSWORD_IN_URL = re.compile(r"(?<=://)[^@/\s]+(?=@)")
_LONGEST_SHOWN = 120
_PLAIN = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
_LISTS = (list, tuple, set, frozenset)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """An environment variable. `also` are older names that still work; `key` is what pydantic calls the field."""

    name: str
    also: tuple[str, ...]
    key: str
    type: str
    default: str
    description: str
    allowed: str
    secret: bool
    required: bool
    kind: Any

    def given(self, source: Mapping[str, str]) -> str | None:
        """The name under which it is set, if it is."""
        return next((name for name in (self.name, *self.also) if source.get(name, "").strip()), None)


def variables(settings: type[BaseSettings]) -> list[Variable]:
    prefix = str(settings.model_config.get("env_prefix") or "")
    return [_variable(name, field, prefix) for name, field in settings.model_fields.items()]


def raw_value(variable: Variable, source: Mapping[str, str]) -> Any:
    """What pydantic is given: text, or for a list its parts (JSON, or separated by commas)."""
    text = source[variable.given(source) or variable.name].strip()
    origin = get_origin(variable.kind) or variable.kind
    if origin in (*_LISTS, dict) and text[:1] in "[{":
        try:
            return json.loads(text)
        except ValueError:
            return text
    if origin in _LISTS:
        return [part.strip() for part in text.split(",") if part.strip()]
    return _finite(text) if origin is float else text


def complaint(variable: Variable | None, found: ErrorDetails, source: Mapping[str, str]) -> str:
    """One sentence: the variable, its value, what is allowed."""
    raised = found.get("ctx", {}).get("error")
    if variable is None:
        return str(raised or found["msg"])
    name = variable.given(source)
    if name is None:
        return f"{variable.name} is not set; it must be {variable.allowed}."
    shown = "has a value that is not allowed" if variable.secret else f"is {_shown(source[name])!r}"
    reason = str(raised).rstrip(".") if isinstance(raised, ValueError) else f"it must be {variable.allowed}"
    return f"{name} {shown}; {reason}."


def _variable(name: str, field: FieldInfo, prefix: str) -> Variable:
    names, key = _names(name, field, prefix)
    kind = _without_none(field.annotation)
    plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    return Variable(
        name=names[0],
        also=names[1:],
        key=key,
        type=_type_name(plain),
        default=_default(field),
        description=field.description or "",
        allowed=_own_words(field) or _allowed(kind, field.metadata),
        secret=plain in (SecretStr, SecretBytes),
        required=field.is_required(),
        kind=plain,
    )


def _names(name: str, field: FieldInfo, prefix: str) -> tuple[tuple[str, ...], str]:
    alias = field.validation_alias
    if isinstance(alias, AliasChoices):
        choices = tuple(choice for choice in alias.choices if isinstance(choice, str))
        return choices, choices[0]
    if isinstance(alias, str):
        return (alias,), alias
    return ((prefix + name).upper(),), name


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
        return _without_none(kinds[0]) if len(kinds) == 1 else annotation
    return annotation


def _own_words(field: FieldInfo) -> str | None:
    """A field may say itself what it allows: `json_schema_extra={"allowed": "…"}`."""
    extra = field.json_schema_extra
    return str(extra["allowed"]) if isinstance(extra, dict) and "allowed" in extra else None


def _type_name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "choice"
    return kind.__name__ if isinstance(kind, type) and get_origin(kind) is None else str(kind).replace("typing.", "")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=False)
    if default is None or default is PydanticUndefined:
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    return str(default.value if isinstance(default, Enum) else default)


def _allowed(kind: Any, metadata: list[Any]) -> str:
    if get_origin(kind) is Annotated:
        inner, *more = get_args(kind)
        return _allowed(inner, [*metadata, *more])
    if get_origin(kind) is Literal:
        return _either([str(choice) for choice in get_args(kind)])
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _either([str(choice.value) for choice in kind])
    if (get_origin(kind) or kind) in _LISTS:
        return "a list, its parts separated by commas"
    if (get_origin(kind) or kind) is dict:
        return "a JSON object"
    return _PLAIN.get(kind, "text") + _bounds(metadata)


def _bounds(metadata: list[Any]) -> str:
    """Said of numbers (`ge`, `gt`, `le`, `lt`) and of texts (`min_length`, `max_length`, `pattern`)."""
    bound: dict[str, Any] = {}
    for item in metadata:
        for name in ("ge", "gt", "le", "lt", "min_length", "max_length", "pattern"):
            if getattr(item, name, None) is not None:
                bound[name] = getattr(item, name)
    if "ge" in bound and "le" in bound:
        return f" from {bound['ge']} to {bound['le']}"
    words = {
        "ge": "at least {}",
        "gt": "greater than {}",
        "le": "at most {}",
        "lt": "less than {}",
        "min_length": "at least {} characters long",
        "max_length": "at most {} characters long",
        "pattern": "of the form {}",
    }
    said = [words[name].format(value) for name, value in bound.items()]
    return ", " + " and ".join(said) if said else ""


def _either(choices: list[str]) -> str:
    return choices[0] if len(choices) == 1 else ", ".join(choices[:-1]) + " or " + choices[-1]


def _shown(text: str) -> str:
    hidden = _PASSWORD_IN_URL.sub("***", text)
    return hidden if len(hidden) <= _LONGEST_SHOWN else hidden[:_LONGEST_SHOWN] + "…"


def _finite(text: str) -> float | str:
    """Text that is no finite number stays text, with a mark that no number carries, so that it is refused."""
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else f"{text} is not finite"
