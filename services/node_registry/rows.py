"""What happened to nodes, as rows of the archive, and back. Pure."""

import hashlib
from datetime import datetime
from typing import Any

from libs.common.archive.tables import Row
from libs.common.contracts.node_administration import NodeEvent
from libs.common.contracts.node_registry import NodeStatus
from services.node_registry.capabilities import Facts
from services.node_registry.model import Node


def status_row(status: NodeStatus, *, number: int) -> dict[str, Any]:
    """`number` is where the elected registry counted it; the row's id comes with the message, so it is kept once."""
    return {
        "event_id": status.event_id,
        "node_id": status.node_id,
        "at": status.at,
        "kind": "drain" if status.previous is status.state else "state",
        "previous": status.previous.value if status.previous is not None else None,
        "state": status.state.value,
        "reason": status.reason,
        "boot_id": status.boot_id,
        "detail": {"draining": status.draining},
        "log_seq": number,
    }


def restart_row(node: Node, *, at: datetime) -> dict[str, Any]:
    event_id = _same_everywhere("restart", node.node_id, node.life.boot_id)
    before = node.life.past_boots[-1] if node.life.past_boots else None
    return _own_row(node, event_id, at, "restart", "it restarted", {"boot_id_before": before})


def capabilities_row(node: Node, difference: Facts, *, at: datetime) -> dict[str, Any]:
    told = node.announced
    event_id = _same_everywhere("capabilities", node.node_id, told.boot_id, told.at.isoformat())
    return _own_row(node, event_id, at, "capabilities", f"changed: {', '.join(sorted(difference))}", difference)


def node_row(node: Node, *, at: datetime, number: int) -> dict[str, Any]:
    """`number` is higher in each newer row of a node: the database keeps the newest."""
    told, machine = node.announced, node.announced.inventory
    usable = [gpu.usable_mb for gpu in told.machine.gpus]
    return {
        "node_id": node.node_id,
        "boot_id": node.life.boot_id,
        "hostname": machine.hostname,
        "state": node.life.state.value,
        "state_reason": node.life.reason,
        "tier": told.machine.tier.value,
        "platform": machine.platform.value,
        "gpu_count": len(machine.gpus),
        "vram_total_mb": sum(known for known in usable if known is not None) if any(usable) else None,
        "ram_total_mb": machine.memory.total_mb,
        "labels": dict(told.machine.labels),
        "inventory": machine.model_dump(mode="json"),
        "announced_at": told.at,
        "changed_at": at,
        "log_seq": number,
    }


def event_of(row: Row) -> NodeEvent:
    return NodeEvent.model_validate({name: value for name, value in row.items() if name != "log_seq"})


def _own_row(node: Node, event_id: str, at: datetime, kind: str, reason: str, detail: Facts) -> dict[str, Any]:
    return {
        "event_id": event_id,
        "node_id": node.node_id,
        "at": at,
        "kind": kind,
        "previous": None,
        "state": node.life.state.value,
        "reason": reason,
        "boot_id": node.life.boot_id,
        "detail": detail,
        "log_seq": int(at.timestamp() * 1000),
    }


def _same_everywhere(*parts: str) -> str:
    """Every registry notices these by itself, and must give them the same id."""
    return f"{parts[0]}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:32]}"
