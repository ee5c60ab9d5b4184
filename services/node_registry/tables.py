"""What the registry keeps in the archive: each node as it was told last, and what happened to nodes."""

from libs.common.archive.tables import Column, Kind, Table

OWNER = "node_registry"

NODES = Table(
    name="nodes",
    owner=OWNER,
    key=("node_id",),
    columns=(
        Column(name="node_id", kind=Kind.TEXT),
        Column(name="boot_id", kind=Kind.TEXT),
        Column(name="hostname", kind=Kind.TEXT),
        Column(name="state", kind=Kind.TEXT),
        Column(name="state_reason", kind=Kind.TEXT),
        Column(name="tier", kind=Kind.TEXT),
        Column(name="platform", kind=Kind.TEXT),
        Column(name="gpu_count", kind=Kind.INTEGER),
        Column(name="vram_total_mb", kind=Kind.INTEGER, nullable=True),
        Column(name="ram_total_mb", kind=Kind.INTEGER, nullable=True),
        Column(name="labels", kind=Kind.JSON),
        Column(name="inventory", kind=Kind.JSON),
        Column(name="announced_at", kind=Kind.TIMESTAMP),
        Column(name="changed_at", kind=Kind.TIMESTAMP),
        Column(name="log_seq", kind=Kind.INTEGER),
    ),
    indexes=(("changed_at",),),
)
"""One row per node. `log_seq` is any number that grows with each newer state of the node."""

NODE_EVENTS = Table(
    name="node_events",
    owner=OWNER,
    key=("event_id",),
    columns=(
        Column(name="event_id", kind=Kind.TEXT),
        Column(name="node_id", kind=Kind.TEXT),
        Column(name="at", kind=Kind.TIMESTAMP),
        Column(name="kind", kind=Kind.TEXT),
        Column(name="previous", kind=Kind.TEXT, nullable=True),
        Column(name="state", kind=Kind.TEXT, nullable=True),
        Column(name="reason", kind=Kind.TEXT),
        Column(name="boot_id", kind=Kind.TEXT, nullable=True),
        Column(name="detail", kind=Kind.JSON, nullable=True),
        Column(name="log_seq", kind=Kind.INTEGER),
    ),
    indexes=(("at",), ("node_id", "at")),
    append_only=True,
)
"""`kind` is `state` or `capabilities`. The same event always has the same `event_id`, so that it is kept once."""

TABLES = (NODES, NODE_EVENTS)
