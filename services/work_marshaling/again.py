"""Runs an ended item again: as a new item that says of which one it is a repetition."""

import json
from typing import Any

from libs.common.clock import Clock
from libs.common.contracts.base import ObjectRef
from libs.common.contracts.work_events import RunAgain
from libs.common.contracts.work_marshaling import WorkAccepted, WorkStatus
from libs.common.contracts.work_records import Finished
from libs.common.errors import Conflict, Malformed, NotFound, Unavailable
from services.work_marshaling.asking import Asking
from services.work_marshaling.facts import asked_for
from services.work_marshaling.large import Large
from services.work_marshaling.leading import Leading
from services.work_marshaling.model import ENDED, Submission, WorkItem
from services.work_marshaling.records import Records
from services.work_marshaling.use_cases import WorkMarshaling


class Again:
    def __init__(
        self,
        *,
        clock: Clock,
        leading: Leading,
        records: Records,
        asking: Asking,
        marshaling: WorkMarshaling,
        large: Large,
    ) -> None:
        self._clock = clock
        self._leading = leading
        self._records = records
        self._asking = asking
        self._marshaling = marshaling
        self._large = large

    async def retry(self, work_id: str, asked: RunAgain) -> WorkAccepted:
        """Any item that ended. Raises `Conflict` when it has not, or when its payload is gone; `NotFound`."""
        found = await self._asking.find_one(work_id)
        if found.status not in ENDED:
            raise Conflict(f"{work_id} has not ended: it is {found.status.value}", status=found.status.value)
        return await self._submit(found, asked)

    async def replay(self, work_id: str, asked: RunAgain) -> WorkAccepted:
        """A dead item. Raises `Conflict` for any other, or when its payload is gone; `NotFound`."""
        found = await self._asking.find_one(work_id)
        if found.status is not WorkStatus.DEAD:
            raise Conflict(f"{work_id} is not dead: it is {found.status.value}", status=found.status.value)
        return await self._submit(found, asked)

    async def _submit(self, found: WorkItem | Finished, asked: RunAgain) -> WorkAccepted:
        before = found.item if isinstance(found, Finished) else asked_for(found)
        payload = await self._payload(found, before.payload_ref)
        if payload is None:
            bytes_there = found.payload_bytes if isinstance(found, Finished) else found.spec.payload_bytes
            told = f"the payload of {found.work_id} is kept no longer: it had {bytes_there} bytes"
            raise Conflict(f"{told}; submit the item anew, with its payload", payload_bytes=bytes_there)
        return await self._marshaling.submit(self._anew(before, found.work_id, payload, asked))

    async def _payload(self, found: WorkItem | Finished, ref: ObjectRef | None) -> dict[str, Any] | None:
        if ref is not None:
            return await self._object(ref)
        return _archived_payload(found) if isinstance(found, Finished) else await self._payload_of(found)

    async def _object(self, ref: ObjectRef) -> dict[str, Any] | None:
        try:
            content = await self._large.content(ref)
        except (NotFound, Malformed):
            return None
        return content if isinstance(content, dict) else None

    def _anew(self, before: Submission, work_id: str, payload: dict[str, Any], asked: RunAgain) -> Submission:
        """The same, but for moments that have passed."""
        now = self._clock.now()
        changes = {
            "work_id": asked.work_id,
            "retry_of": work_id,
            "payload": payload,
            "payload_ref": None,
            "submitter": before.submitter if asked.submitter is None else asked.submitter,
            "deadline": before.deadline if before.deadline is not None and before.deadline > now else None,
            "not_before": before.not_before if before.not_before is not None and before.not_before > now else None,
        }
        return before.model_copy(update=changes)

    async def _payload_of(self, item: WorkItem) -> dict[str, Any] | None:
        """From the memory until it is archived, then from the archive or from WORK_IN, as long as they have it."""
        leadership = self._leading.present
        if item.spec.payload is not None:
            kept: dict[str, Any] = json.loads(item.spec.payload)
            return kept
        there = await leadership.payloads.kept(item)
        if there is not None:
            return there
        archived = await self._records.find(item.work_id)
        if archived is not None:
            return _archived_payload(archived)
        raise Unavailable(f"{item.work_id} is still on its way into the archive; ask again")


def _archived_payload(found: Finished) -> dict[str, Any] | None:
    return None if found.payload is None else json.loads(found.payload)
