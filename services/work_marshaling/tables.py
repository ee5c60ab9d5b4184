"""What work marshaling keeps in the archive: finished work."""

from libs.common.archive.tables import Column, Kind, Table

WORK_ITEMS = Table(
    name="work_items",
    owner="work_marshaling",
    key=("work_id",),
    columns=(
        Column(name="work_id", kind=Kind.TEXT),
        Column(name="sequence", kind=Kind.INTEGER),
        Column(name="status", kind=Kind.TEXT),
        Column(name="work_type", kind=Kind.TEXT),
        Column(name="model_name", kind=Kind.TEXT, nullable=True),
        Column(name="node_id", kind=Kind.TEXT, nullable=True),
        Column(name="submitter", kind=Kind.TEXT, nullable=True),
        Column(name="priority", kind=Kind.INTEGER),
        Column(name="labels", kind=Kind.JSON),
        Column(name="submitted_at", kind=Kind.TIMESTAMP),
        Column(name="ended_at", kind=Kind.TIMESTAMP),
        Column(name="attempts", kind=Kind.JSON),
        Column(name="error", kind=Kind.JSON, nullable=True),
        Column(name="result", kind=Kind.JSON, nullable=True),
        Column(name="result_bytes", kind=Kind.INTEGER),
        Column(name="log_seq", kind=Kind.INTEGER),
    ),
    indexes=(("ended_at",), ("sequence",), ("status", "ended_at"), ("node_id", "ended_at")),
)
"""One row per item. `log_seq` is the position in WORK_LOG of the fact that ended it; `node_id` had its last attempt."""

TABLES = (WORK_ITEMS,)
