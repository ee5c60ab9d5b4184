"""Which engines came up whose logs tell of a GPU's memory."""

from collections.abc import Iterable, Iterator

from libs.common.contracts.vllm_instances import EngineChoice, Instance, InstanceState
from libs.inference.planner.devices import Node
from services.vllm_orchestrator.model import StartedEngine


def started_engines(instances: Iterable[Instance], nodes: Iterable[Node]) -> Iterator[StartedEngine]:
    """Replicas with vLLM that are ready, on GPUs that are known."""
    known = {gpu.uuid: gpu for node in nodes for gpu in node.gpus}
    for instance in instances:
        for replica in instance.replicas:
            uuids = [uuid for part in replica.parts for uuid in part.gpu_uuids]
            if replica.state is not InstanceState.READY or replica.request.engine is not EngineChoice.VLLM:
                continue
            if uuids and all(uuid in known for uuid in uuids):
                yield StartedEngine(
                    key=f"{instance.name}/{replica.number}/{replica.generation}/{instance.created_at.isoformat()}",
                    place=(instance.name, replica.number),
                    request=replica.request,
                    arguments=replica.parts[0].arguments,
                    gpus=tuple(known[uuid] for uuid in uuids),
                )
