"""Which subject leads to which method."""

from libs.common.bus.bus import Bus
from libs.common.contracts.engine_hosting import ENGINE_LOG, LOOK_AT_ENGINES, START_ENGINE, STOP_ENGINE
from libs.common.contracts.node_registry import DISCOVER, STATUS, Discover
from libs.common.contracts.work_marshaling import ASSIGN, STOP
from services.node_agent.hosting import Hosting
from services.node_agent.use_cases import NodeAgent


async def open_doors(bus: Bus, agent: NodeAgent, hosting: Hosting, node_id: str) -> None:
    """Listen to work marshaling, to the vLLM orchestrator, to the registry, and to those who ask all nodes to
    show themselves."""

    async def discovered(_: Discover) -> None:
        await agent.discovered()

    await bus.serve(STOP, agent.stop, node_id=node_id)
    await bus.serve(ASSIGN, agent.assign, node_id=node_id)
    await bus.serve(START_ENGINE, hosting.start, node_id=node_id)
    await bus.serve(STOP_ENGINE, hosting.stop, node_id=node_id)
    await bus.serve(LOOK_AT_ENGINES, hosting.look, node_id=node_id)
    await bus.serve(ENGINE_LOG, hosting.read_log, node_id=node_id)
    await bus.subscribe(DISCOVER, discovered)
    await bus.subscribe(STATUS, agent.node_status)
