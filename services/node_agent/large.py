"""Payloads and results that are too large for a message: fetched and kept as objects, with their digests."""

import json
from typing import Any

from libs.common.bus.bus import Bus
from libs.common.bus.codec import encode
from libs.common.contracts.base import Written
from libs.common.contracts.streams import INLINE_MOST_BYTES, RESULT_OBJECT, WORK_OBJECTS
from libs.common.contracts.work_marshaling import Assignment, WorkCompleted
from libs.common.errors import Malformed, NotFound, Unavailable
from services.node_agent.model import JobFailed


class Large:
    def __init__(self, bus: Bus) -> None:
        self._objects = bus.objects(WORK_OBJECTS)

    async def with_payload(self, assignment: Assignment) -> Assignment:
        """The assignment with its payload at hand. Raises `JobFailed`."""
        ref = assignment.payload_ref
        if ref is None:
            return assignment
        try:
            payload: Any = json.loads(await self._objects.get(ref))
        except (NotFound, Malformed, ValueError) as error:
            raise JobFailed("payload_lost", f"the payload cannot be had: {error}", retryable=False) from error
        except Unavailable as error:
            raise JobFailed("payload_unreachable", error.message, retryable=True) from error
        if not isinstance(payload, dict):
            raise JobFailed("payload_lost", "the payload is no JSON object", retryable=False)
        return assignment.model_copy(update={"payload": payload, "payload_ref": None})

    async def with_result_apart(self, told: WorkCompleted) -> WorkCompleted | Written[WorkCompleted]:
        """The message with a large result put aside. Done twice it is the same. Raises what `Objects.put` raises."""
        written = encode(told)
        if len(written) <= INLINE_MOST_BYTES:
            return Written(WorkCompleted, written)
        content = json.dumps(told.result, separators=(",", ":"), ensure_ascii=False).encode()
        ref = await self._objects.put(RESULT_OBJECT.format(token=told.attempt_token), content)
        return told.model_copy(update={"result": None, "result_ref": ref})
