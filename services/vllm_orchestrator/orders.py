"""What agents are asked to start."""

from typing import Any

from libs.common.contracts.engine_hosting import StartEngine
from libs.common.contracts.vllm_instances import InstancePart, Replica


def key_of(name: str, replica: Replica, part: InstancePart) -> dict[str, Any]:
    """What tells a process of an instance from all others."""
    return {"instance": name, "replica": replica.number, "generation": replica.generation, "rank": part.rank}


def start_of(name: str, replica: Replica, part: InstancePart, join_seconds: float) -> StartEngine:
    """`join_seconds`: how long the nodes of a Ray cluster may take to find each other."""
    fields: dict[str, Any] = {
        "program": replica.request.engine,
        "model_name": replica.request.model_name,
        "arguments": part.arguments,
        "environment": part.environment,
        "ray": _cluster(replica, part, join_seconds),
        "container": {"image": part.image, "gpu_uuids": part.gpu_uuids} if part.image else None,
        "serves": part.serves,
        "slots": replica.slots,
        "context_tokens": replica.context_tokens,
        "device": "cuda" if part.gpu_uuids else "cpu",
        "reservation_id": part.reservation_id,
        "reservation_token": part.token,
        "more_reservations": [claim.model_dump(include={"reservation_id", "token"}) for claim in part.more],
    }
    return StartEngine.model_validate(key_of(name, replica, part) | fields)


def _cluster(replica: Replica, part: InstancePart, join_seconds: float) -> dict[str, Any] | None:
    if not part.ray:
        return None
    return {
        "arguments": part.ray,
        "address": part.environment["RAY_ADDRESS"],
        "nodes": len(replica.parts),
        "gpus": sum(len(each.gpu_uuids) for each in replica.parts),
        "join_seconds": join_seconds,
    }
