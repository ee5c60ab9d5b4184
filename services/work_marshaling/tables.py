"""What work marshaling keeps in the archive: finished work."""

from libs.common.archive.tables import Column, Kind, Table

OWNER = "work_marshaling"

WORK_ITEMS = Table(
    name="work_items",
    owner=OWNER,
    key=("work_id",),
    columns=(
        Column(name="work_id", kind=Kind.TEXT),
        Column(name="sequence", kind=Kind.INTEGER),
        Column(name="status", kind=Kind.TEXT),
        Column(name="work_type", kind=Kind.TEXT),
        Column(name="model_name", kind=Kind.TEXT, nullable=True),
        Column(name="node_id", kind=Kind.TEXT, nullable=True),
        Column(name="submitter", kind=Kind.TEXT, nullable=True),
        Column(name="retry_of", kind=Kind.TEXT, nullable=True),
        Column(name="priority", kind=Kind.INTEGER),
        Column(name="labels", kind=Kind.JSON),
        Column(name="submitted_at", kind=Kind.TIMESTAMP),
        Column(name="ended_at", kind=Kind.TIMESTAMP),
        Column(name="max_attempts", kind=Kind.INTEGER),
        Column(name="attempts", kind=Kind.JSON),
        Column(name="error", kind=Kind.JSON, nullable=True),
        Column(name="result", kind=Kind.JSON, nullable=True),
        Column(name="result_bytes", kind=Kind.INTEGER),
        Column(name="item", kind=Kind.JSON),
        Column(name="payload", kind=Kind.TEXT, nullable=True),
        Column(name="payload_bytes", kind=Kind.INTEGER),
        Column(name="digest", kind=Kind.TEXT),
        Column(name="log_seq", kind=Kind.INTEGER),
    ),
    indexes=(
        ("ended_at",),
        ("submitted_at",),
        ("sequence",),
        ("status", "submitted_at"),
        ("node_id", "submitted_at"),
    ),
)
"""One row per item. `log_seq` is the position in WORK_DONE of the message that told of it; `node_id` had its last
attempt. `payload` is JSON text, which comes back to the letter."""

TABLES = (WORK_ITEMS,)
