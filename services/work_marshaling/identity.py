"""Ids that the server makes, and the fingerprint that tells the same item from another one of the same id."""

import hashlib
import json
from datetime import datetime
from functools import lru_cache

from pydantic_core import to_json

from libs.common.contracts.work_marshaling import SERVER_PREFIX
from services.work_marshaling.model import Submission

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def server_id(stream_made: datetime, sequence: int, index: int | None = None) -> str:
    """The id of an item that came without one: unique also after the stream was made anew."""
    own = f"{SERVER_PREFIX}{_base36(int(stream_made.timestamp() * 1000))}-{sequence}"
    return own if index is None else f"{own}-{index}"


@lru_cache  # of the moment when the stream was made, for every item in it
def _base36(number: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = _DIGITS[digit] + digits
    return digits or "0"


def digest(item: Submission) -> str:
    """128 bits over the content in canonical JSON, without the id; hex. A default is the same as nothing, so that a
    field that is added later changes nothing."""
    if item.payload_ref is not None:  # the same content, whatever its object is called
        item = item.model_copy(update={"payload_ref": item.payload_ref.model_copy(update={"name": "any"})})
    told = item.model_dump(mode="json", exclude={"work_id", "refuse_unsatisfiable"}, exclude_defaults=True)
    canonical = json.dumps(told, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()


def id_digest(work_id: str) -> bytes:
    """128 bits that stand for an id which is remembered after its item was forgotten."""
    return hashlib.blake2b(work_id.encode(), digest_size=16).digest()


def canonical_text(payload: object) -> str:
    """The same text for the same JSON."""
    return json.dumps(payload, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def payload_text(payload: object) -> str:
    """The payload as it is kept: compact JSON."""
    return to_json(payload).decode()
