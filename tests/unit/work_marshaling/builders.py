"""Small makers of the things that tests of the queue are about."""

from datetime import UTC, datetime, timedelta

from libs.common.contracts.node_registry import Engine, EngineState, NodeWorkload
from libs.common.contracts.work_marshaling import WorkError
from services.work_marshaling.identity import digest, payload_text
from services.work_marshaling.model import Policy, Submission, Submitted
from services.work_marshaling.remembered import RememberedIds
from services.work_marshaling.store import Memory

NOW = datetime(2030, 1, 1, tzinfo=UTC)
POLICY = Policy(retry_max=2, retry_delay_seconds=5.0)
BROKEN = WorkError(code="broken", message="it broke")
FINAL = WorkError(code="bad_input", message="never", retryable=False)


def submission(**fields: object) -> Submission:
    return Submission.model_validate({"work_type": "chat", "payload": {"prompt": "hi"}} | fields)


def submitted(work_id: str, sequence: int, index: int = 0, **fields: object) -> Submitted:
    item = submission(**fields)
    return Submitted(
        work_id=work_id,
        sequence=sequence,
        index=index,
        at=NOW,
        item=item.model_copy(update={"payload": {}}),
        payload=payload_text(item.payload),
        payload_bytes=len(payload_text(item.payload)),
        digest=digest(item),
    )


def memory(ended_most: int = 1000) -> Memory:
    remembered = RememberedIds(most=1000, keep=timedelta(days=1))
    return Memory(remembered, ended_most=ended_most, ended_keep=timedelta(days=1))


def workload(node_id: str = "n1", slots: int = 4, **fields: object) -> NodeWorkload:
    told: dict[str, object] = {"boot_id": "b1", "at": NOW, "free_slots": slots, "work_types": ("chat",)}
    return NodeWorkload.model_validate({"node_id": node_id, "slots": slots} | told | fields)


def engine(model_name: str, state: EngineState = EngineState.READY) -> Engine:
    return Engine(engine_id="e", kind="llama.cpp", model_name=model_name, state=state, device="cpu")
