"""Messages to bytes and back, and errors as replies.

One rule for what is written: every field, null ones included, so that a reader without our defaults sees them.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError, to_jsonable_python

from libs.common.contracts.base import ErrorBody, ErrorReply, Message, Written
from libs.common.errors import Malformed, MeshError, error_named

ERROR_HEADER = "Nats-Service-Error"
ERROR_CODE_HEADER = "Nats-Service-Error-Code"

NAMED_FAULTS = 3
LISTED_FAULTS = 1000
_LOCATION_PARTS = 6
_SHORT = 120
_MESSAGE_CHARACTERS = 2000
_REPLY_BYTES = 64 * 1024

_KINDS: Mapping[type, str] = {
    type(None): "null",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "an object",
}

T = TypeVar("T", bound=Message)


def encode(message: Message | Written[Any]) -> bytes:
    """Raises `Malformed` when the message holds text that no UTF-8 reader could read."""
    if isinstance(message, Written):
        return message.json
    return _json(message)


def _json(message: Message, exclude: set[str] | None = None) -> bytes:
    try:
        return message.__pydantic_serializer__.to_json(message, exclude=exclude)
    except (PydanticSerializationError, UnicodeEncodeError) as error:
        raise Malformed(f"{type(message).__name__} cannot be written as JSON: {_short(str(error))}") from error


def encode_with(message: T, **written: bytes) -> Written[T]:
    """The message, with these fields in JSON that was written already; what it holds in them itself is not told.

    Raises `Malformed` as `encode` does.
    """
    return joined(type(message), encode_without(message, *written), **written)


def encode_without(message: Message, *fields: str) -> bytes:
    """The message without these fields, for `joined` to add them. Raises `Malformed` as `encode` does."""
    return _json(message, set(fields))


def joined(kind: type[T], rest: bytes, **written: bytes) -> Written[T]:
    """A message of which `rest` was written by `encode_without`, with the fields that it left out."""
    told = b",".join([b'"%b":%b' % (name.encode(), value) for name, value in written.items()])
    return Written(kind, b"{%b}" % told if rest == b"{}" else b"{%b,%b" % (told, rest[1:]))


def encode_list(parts: Iterable[bytes]) -> bytes:
    return b"[%b]" % b",".join(parts)


def decode(kind: type[T], payload: bytes) -> T:
    """Raises `Malformed`, naming at most three fields: what kind of value each has and what was expected of it."""
    try:
        return kind.model_validate_json(payload)
    except ValidationError as error:
        raise malformed(kind.__name__, error) from error


def malformed(what: str, error: ValidationError, *, values: bool = False) -> Malformed:
    """What pydantic found, short enough for an answer. With `values`, for who sent it alone, also texts and numbers
    themselves, instead of what kind of value each is."""
    count = error.error_count()
    if count > LISTED_FAULTS:  # listing a quarter of a million faults would hold up everybody else for a second
        return Malformed(f"{what} cannot be read: {count} values are wrong", faults=count, fields=[])
    found = error.errors(include_url=False, include_context=False)[:NAMED_FAULTS]
    fields = [_field(fault, values=values) for fault in found]
    told = "; ".join(_sentence(field) for field in fields)
    more = f"; and {count - len(found)} more" if count > len(found) else ""
    return Malformed(f"{what} cannot be read: {told}{more}", faults=count, fields=fields)


def error_reply(error: MeshError) -> tuple[bytes, dict[str, str]]:
    """The body and the headers (as tools for NATS services read them) that answer a request with this error."""
    headers = {ERROR_HEADER: _header(f"{error.code}: {error.message}"), ERROR_CODE_HEADER: str(error.status)}
    message = _readable(error.message)[:_MESSAGE_CHARACTERS]
    bare = ErrorReply(error=ErrorBody(code=error.code, message=message))
    try:
        details = to_jsonable_python(error.details, fallback=str, inf_nan_mode="strings")
        full = encode(ErrorReply(error=ErrorBody(code=error.code, message=message, details=details)))
    except (Malformed, ValueError):  # details that are no JSON must not cost the asker its answer
        return encode(bare), headers
    return (full if len(full) <= _REPLY_BYTES else encode(bare)), headers


def read_reply(kind: type[T], payload: bytes, headers: Mapping[str, str]) -> T:
    """The answer. Raises the error that was answered instead, or `Malformed` when it is neither."""
    if ERROR_HEADER in headers or ERROR_CODE_HEADER in headers:
        raise _answered(decode(ErrorReply, payload))
    try:
        return decode(kind, payload)
    except Malformed as unreadable:
        try:  # a responder that is not ours may answer an error without our headers
            answered = ErrorReply.model_validate_json(payload)
        except ValidationError:
            raise unreadable from None
        raise _answered(answered) from None


def _answered(reply: ErrorReply) -> MeshError:
    return error_named(reply.error.code, reply.error.message, reply.error.details)


def _field(fault: Any, *, values: bool) -> dict[str, str]:
    place = [str(part) for part in fault["loc"][:_LOCATION_PARTS]]
    if len(fault["loc"]) > _LOCATION_PARTS:
        place.append("…")
    expected = fault["msg"].removeprefix("Value error, ")
    if fault["type"] in ("missing", "json_invalid"):
        kind = "missing" if fault["type"] == "missing" else "not JSON"
    elif values and isinstance(fault["input"], str | int | float):
        kind = _short(_shown(fault["input"]))
    else:
        kind = _KINDS.get(type(fault["input"]), type(fault["input"]).__name__)
    return {"field": _short(".".join(place)), "got": kind, "expected": _short(expected)}


def _shown(value: str | float) -> str:
    """As JSON; of a very long number Python shows nothing."""
    try:
        return json.dumps(value[:_SHORT] if isinstance(value, str) else value, ensure_ascii=False)
    except ValueError:
        return "a number with too many digits"


def _sentence(field: Mapping[str, str]) -> str:
    name = f"`{field['field']}` " if field["field"] else ""
    return f"{name}is {field['got']}: {field['expected']}"


def _short(text: str) -> str:
    readable = _readable(text)
    return readable if len(readable) <= _SHORT else readable[: _SHORT - 1] + "…"


def _readable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _header(text: str) -> str:
    """A header ends at the end of its line, and not every reader knows more than ASCII."""
    plain = text.encode("ascii", "backslashreplace").decode("ascii")
    return "".join(character if character.isprintable() else " " for character in plain)[:200]
