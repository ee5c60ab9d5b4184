"""The shapes everything on the wire has: a message, a topic it is told on, a call it is asked with."""

import hashlib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import MAXYEAR, MINYEAR, UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, Generic, TypeVar

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, StringConstraints

MAX_DEPTH = 32
MAX_INTEGER = 2**63 - 1
MAX_OBJECT_BYTES = 32 * 1024 * 1024
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Message(BaseModel):
    """Immutable, strict about the fields it knows, silent about fields added later."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


M = TypeVar("M", bound=Message)
Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _plain(value: Any) -> Any:
    """Refuse JSON that other readers could choke on: NaN, infinities, huge integers, deep nesting, broken text."""
    floor: list[tuple[Any, int]] = [(value, 1)]
    while floor:
        item, depth = floor.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"is nested deeper than {MAX_DEPTH} levels")
        if isinstance(item, str):
            if not item.isascii() and not _is_text(item):
                raise ValueError("holds half of a surrogate pair, which is not text")
        elif isinstance(item, dict):
            floor.extend([(inner, depth + 1) for pair in item.items() for inner in pair])
        elif isinstance(item, list):
            floor.extend([(inner, depth + 1) for inner in item])
        elif isinstance(item, float) and not math.isfinite(item):
            raise ValueError("holds NaN or an infinity, which is not JSON")
        elif isinstance(item, int) and not -MAX_INTEGER <= item <= MAX_INTEGER:
            raise ValueError("holds an integer beyond 64 bits")
    return value


JsonObject = Annotated[dict[str, JsonValue], AfterValidator(_plain)]
"""A JSON object of anybody's making: finite numbers, integers of at most 64 bits, text without lone surrogates, at most
32 levels."""

Json = Annotated[JsonValue, AfterValidator(_plain)]


@dataclass(frozen=True, slots=True)
class Written(Generic[M]):
    """A message in the JSON it is told in. Who tells large ones again and again writes their parts once."""

    message: type[M]
    json: bytes

    def read(self) -> M:
        return self.message.model_validate_json(self.json)


Identifier = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[\x21-\x7e]+$")]
"""An opaque id: 1 to 128 printable ASCII characters without spaces."""


def _has_a_place_in_utc(moment: datetime) -> datetime:
    if MINYEAR < moment.year < MAXYEAR:
        return moment
    try:
        moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("lies beyond the years 1 to 9999 in UTC") from None
    return moment


AttemptToken = Annotated[str, StringConstraints(min_length=1, max_length=128)]
"""A secret that names one attempt. One made for a node's agent tells which run of it is meant: see `attempt_token`."""

_OF_BOOT_ID = 12


def attempt_token(secret: str, boot_id: str | None) -> str:
    """A token for an attempt by the run of an agent with this boot id, whose first 12 characters follow a dot.

    Without a boot id, or with one that has other characters than letters, digits, `_` and `-`, it is for any run.
    """
    return f"{secret}.{boot_id[:_OF_BOOT_ID]}" if boot_id is not None and _TOKEN.fullmatch(boot_id) else secret


def is_of_another_run(token: str, boot_ids: Iterable[str]) -> bool:
    """Whether the token was made for a run of an agent, and for none that has one of these boot ids."""
    return "." in token and not any(token.endswith(f".{boot_id[:_OF_BOOT_ID]}") for boot_id in boot_ids)


LabelName = Annotated[str, StringConstraints(min_length=1, max_length=128)]

LabelValue = Annotated[str, StringConstraints(max_length=4096)]

Moment = Annotated[AwareDatetime, AfterValidator(_has_a_place_in_utc)]
"""A point in time, RFC 3339 with its offset; written in UTC."""


@lru_cache(maxsize=4096)
def node_token(node_id: str) -> str:
    """The form of a node id that may enter subjects and consumer names.

    An id of 1 to 64 letters, digits, `_` and `-` that does not start with `h_` is its own token; anything else becomes
    `h_` and a hash, because a dot or a wildcard in a subject means something to the server.
    """
    if _TOKEN.fullmatch(node_id) and not node_id.startswith("h_"):
        return node_id
    return "h_" + hashlib.sha256(node_id.encode()).hexdigest()[:40]


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic(Generic[M]):
    """A fact told to whoever listens.

    `owner` is the service that tells or defines it, `heard_by` says who listens. A topic with a `stream` is kept: it
    is published durably.
    """

    subject: str
    message: type[M]
    owner: str
    summary: str
    heard_by: str = "anyone"
    stream: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[Q, A]):
    """A question that one instance of the owner answers. With `per_node` the subject ends in a node's token."""

    subject: str
    request: type[Q]
    reply: type[A]
    owner: str
    summary: str
    asked_by: str = "anyone"
    per_node: bool = False

    def at(self, node_id: str | None) -> str:
        """The concrete subject to ask on.

        Raises `ValueError` when a node is missing or superfluous: that is a bug of the caller.
        """
        if self.per_node != (node_id is not None):
            raise ValueError(f"{self.subject} {'wants' if self.per_node else 'takes no'} node id")
        return self.subject if node_id is None else f"{self.subject}.{node_token(node_id)}"


class ObjectRef(Message):
    """Where the bytes are that are too large for a message: an object of the mesh's object store, with its digest."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[A-Za-z0-9_.:-]+$")]
    digest: Annotated[str, StringConstraints(pattern=r"^SHA-256=[A-Za-z0-9_-]{43}=$")]
    bytes: int = Field(ge=0, le=MAX_OBJECT_BYTES)


class ErrorBody(Message):
    """Why a request was declined. `code` is stable; `message` is for people."""

    code: str
    message: str
    details: JsonObject = {}


class ErrorReply(Message):
    """The reply to a request that was declined."""

    error: ErrorBody


class DeadLetter(Message):
    """A durable message that could not be used, with its reason. The payload is base64, of a long one its beginning."""

    subject: str
    reason_code: str
    reason: str
    found_by: str
    at: Moment
    stream: str | None = None
    sequence: int | None = None
    headers: dict[str, str] = {}
    payload: str
    payload_bytes: int | None = Field(None, description="of the whole payload")


DEAD_LETTER = Topic(
    subject="compute.dead_letters.v1",
    message=DeadLetter,
    owner="any service",
    summary="A durable message that could not be used, kept with its reason.",
    stream="DEAD_LETTERS",
)


def utc(moment: datetime) -> str:
    """RFC 3339 in UTC, to the microsecond."""
    return moment.isoformat().replace("+00:00", "Z")
