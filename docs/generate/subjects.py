"""`docs/reference/subjects.md`: every subject with its message."""

from collections.abc import Iterator
from typing import Any

from docs.generate.markdown import code, json_block, link, page, sentence, table
from docs.generate.shapes import Shapes, shapes_of
from docs.generate.values import example_of
from libs.common.contracts.base import Call, ErrorReply, Topic
from libs.common.contracts.catalogue import Catalogue, catalogue

INTRODUCTION = """\
Everything that is said over NATS. Payloads are JSON objects in UTF-8. Fields that a reader does not know are ignored;
a field may be added to a message, never renamed, retyped or removed. Times are RFC 3339 in UTC, `_mb` means MiB.

Kinds: *told* is a publish that whoever listens now hears; *kept* is a publish into a JetStream stream, which
acknowledges it; *asked* is a request that one instance answers, with the reply or with an [ErrorReply](#errorreply).
Where a subject ends in `{node_token}`, that is the node's id if it consists of 1 to 64 letters, digits, `_` and `-`
and does not begin with `h_`; otherwise `h_` and the first 40 hex digits of the id's SHA-256.

The same as a machine-readable AsyncAPI 3 document: [asyncapi.json](asyncapi.json)."""

Subject = Topic[Any] | Call[Any, Any]
FIELD_HEAD = ["field", "type", "default", "unit", "meaning"]


def subjects() -> str:
    said = catalogue()
    shapes = shapes_of([*said.messages().values(), ErrorReply])
    return page(
        "Subjects",
        INTRODUCTION,
        _overview(said),
        _streams(said),
        _buckets(said),
        _objects(said),
        "## Each subject",
        *(part for item in _all(said) for part in _subject(item, said)),
        "## Messages",
        *(part for name in shapes.definitions for part in _shape(name, shapes)),
    )


def shown(item: Subject) -> str:
    """The subject with its variable part, as people write it."""
    return f"{item.subject}.{{node_token}}" if isinstance(item, Call) and item.per_node else item.subject


def _all(said: Catalogue) -> list[Subject]:
    items: list[Subject] = [*said.topics, *said.calls]
    return sorted(items, key=shown)


def _overview(said: Catalogue) -> str:
    rows = [_row(item) for item in _all(said)]
    return table(["subject", "kind", "who → who", "message", "what"], rows)


def _row(item: Subject) -> list[str]:
    if isinstance(item, Call):
        messages = f"{link(item.request.__name__)} → {link(item.reply.__name__)}"
        return [link(shown(item)), "asked", f"{item.asked_by} → {item.owner}", messages, item.summary]
    kind = "kept" if item.stream else "told"
    return [link(shown(item)), kind, f"{item.owner} → {item.heard_by}", link(item.message.__name__), item.summary]


def _streams(said: Catalogue) -> str:
    full = {"new": "refuses new messages", "old": "drops the oldest"}
    rows = [
        [code(s.name), ", ".join(map(code, s.subjects)), f"{s.max_bytes >> 20} MiB", full[s.discard], s.summary]
        for s in said.streams
    ]
    return "## Streams\n\n" + table(["stream", "keeps", "size limit", "when full", "what"], rows)


def _buckets(said: Catalogue) -> str:
    rows = [[code(b.name), f"{b.max_bytes >> 20} MiB", b.summary] for b in said.buckets]
    return "## Buckets\n\n" + table(["bucket", "size limit", "what"], rows) if rows else ""


def _objects(said: Catalogue) -> str:
    rows = [[code(o.name), f"{o.max_bytes >> 20} MiB", o.summary] for o in said.objects]
    return "## Object stores\n\n" + table(["object store", "size limit", "what"], rows) if rows else ""


def _subject(item: Subject, said: Catalogue) -> Iterator[str]:
    yield from _topic(item, said) if isinstance(item, Topic) else _call(item)


def _topic(topic: Topic[Any], said: Catalogue) -> Iterator[str]:
    yield f"### {shown(topic)}"
    stream = said.stream_of(topic)
    kept = f" Kept in the stream {code(stream.name)}." if stream else ""
    yield f"{topic.summary} From {topic.owner} to {topic.heard_by}.{kept} Message: {link(topic.message.__name__)}."
    yield json_block(example_of(topic.message))


def _call(call: Call[Any, Any]) -> Iterator[str]:
    yield f"### {shown(call)}"
    yield f"{call.summary} Asked by {call.asked_by}, answered by {call.owner}."
    for what, message in (("Request", call.request), ("Reply", call.reply)):
        yield f"{what}: {link(message.__name__)}."
        yield json_block(example_of(message))


def _shape(name: str, shapes: Shapes) -> Iterator[str]:
    schema = shapes.definitions[name]
    if "properties" not in schema:
        return
    yield f"### {name}"
    yield sentence(schema.get("description"))
    yield table(FIELD_HEAD, shapes.fields(name))
