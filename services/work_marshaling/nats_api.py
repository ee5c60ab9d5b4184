"""The NATS door: which subject leads to which method. Submits and outcomes come through their streams instead."""

from libs.common.bus.bus import Bus
from libs.common.contracts.node_registry import ANNOUNCE, HEARTBEAT, STATUS, WORKLOAD
from libs.common.contracts.work_explained import EXPLAIN
from libs.common.contracts.work_marshaling import CANCEL, PROGRESS, WORK_STATUS
from services.work_marshaling.asking import Asking
from services.work_marshaling.explanations import Explanations
from services.work_marshaling.handing import Handing
from services.work_marshaling.hearing import Hearing
from services.work_marshaling.use_cases import WorkMarshaling


async def open_door(
    marshaling: WorkMarshaling,
    asking: Asking,
    explanations: Explanations,
    hearing: Hearing,
    handing: Handing,
    bus: Bus,
) -> None:
    await bus.subscribe(ANNOUNCE, hearing.announcement, at_once=1)
    await bus.subscribe(HEARTBEAT, hearing.heartbeat, at_once=1)
    await bus.subscribe(STATUS, hearing.status, at_once=1)
    await bus.subscribe(WORKLOAD, hearing.workload, at_once=1)
    await bus.subscribe(PROGRESS, hearing.progress, at_once=1)
    await handing.open_door()
    await bus.serve(WORK_STATUS, handing.by_leader(WORK_STATUS, asking.look_up))
    await bus.serve(CANCEL, handing.by_leader(CANCEL, marshaling.cancel))
    await bus.serve(EXPLAIN, handing.by_leader(EXPLAIN, explanations.explain))
