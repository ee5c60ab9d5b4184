"""`docs/reference/asyncapi.json`: the subjects as an AsyncAPI 3.0 document, seen from the mesh."""

import json
from collections.abc import Mapping
from typing import Any

from docs.generate.running import service_names
from docs.generate.shapes import Shapes, shapes_of
from docs.generate.subjects import shown
from docs.generate.values import example_of
from libs.common.contracts.base import Call, ErrorReply, Message, Topic
from libs.common.contracts.catalogue import Catalogue, catalogue

NODE_TOKEN = {"description": "The node's id, or `h_` and a hash of it where the id could not stand in a subject."}
REPLY_ADDRESS = {"description": "The inbox that the request names.", "location": "$message.header#/reply"}


def asyncapi() -> str:
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


def document() -> dict[str, Any]:
    said = catalogue()
    every: list[type[Message]] = [*said.messages().values(), ErrorReply]
    messages = list(dict.fromkeys(every))
    shapes = shapes_of(messages)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Compute Mesh",
            "version": "1",
            "description": "What is said over NATS. `send` and `receive` are seen from the mesh.",
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "servers": {"local": {"host": "127.0.0.1:4222", "protocol": "nats"}},
        "channels": _channels(said),
        "operations": _operations(said),
        "components": {
            "messages": {message.__name__: _message(message, shapes) for message in messages},
            "schemas": {name: _draft_07(schema) for name, schema in shapes.definitions.items()},
        },
    }


def _channels(said: Catalogue) -> dict[str, Any]:
    channels: dict[str, Any] = {}
    for topic in said.topics:
        channels[shown(topic)] = {"address": shown(topic), "description": topic.summary, **_carries(topic.message)}
        if topic.stream:
            channels[shown(topic)]["x-stream"] = topic.stream
    for call in said.calls:
        parameters = {"parameters": {"node_token": NODE_TOKEN}} if call.per_node else {}
        channels[_name(call)] = {
            "address": shown(call),
            "description": call.summary,
            **parameters,
            **_carries(call.request),
        }
        channels[_name(call, ".reply")] = {"address": None, **_carries(call.reply, ErrorReply)}
    return channels


def _operations(said: Catalogue) -> dict[str, Any]:
    operations: dict[str, Any] = {}
    for topic in said.topics:
        for action in _actions(topic):
            operations[f"{action}.{topic.subject}"] = {
                "action": action,
                "channel": _channel(shown(topic)),
                "summary": topic.summary,
                "messages": [_message_in(shown(topic), topic.message)],
            }
    for call in said.calls:
        operations[f"answer.{call.subject}"] = _answering(call)
    return operations


def _answering(call: Call[Any, Any]) -> dict[str, Any]:
    reply = _name(call, ".reply")
    return {
        "action": "receive",
        "channel": _channel(_name(call)),
        "summary": call.summary,
        "messages": [_message_in(_name(call), call.request)],
        "reply": {
            "address": REPLY_ADDRESS,
            "channel": _channel(reply),
            "messages": [_message_in(reply, call.reply), _message_in(reply, ErrorReply)],
        },
    }


def _actions(topic: Topic[Any]) -> list[str]:
    """`send` when a service of ours tells it, `receive` when strangers may."""
    ours = any(name in topic.owner for name in service_names()) or "any service" in topic.owner
    strangers = "anyone" in topic.owner or "outside" in topic.owner
    return ["send"] * ours + ["receive"] * strangers


def _name(call: Call[Any, Any], part: str = "") -> str:
    """A call may share its subject with a topic: where it ends in a node's token, its channel says so."""
    return f"{call.subject}{'.node' if call.per_node else ''}{part}"


def _carries(*messages: type[Message]) -> dict[str, Any]:
    return {"messages": {m.__name__: {"$ref": f"#/components/messages/{m.__name__}"} for m in messages}}


def _channel(name: str) -> dict[str, str]:
    return {"$ref": f"#/channels/{name}"}


def _message_in(channel: str, message: type[Message]) -> dict[str, str]:
    return {"$ref": f"#/channels/{channel}/messages/{message.__name__}"}


def _message(message: type[Message], shapes: Shapes) -> dict[str, Any]:
    return {
        "name": message.__name__,
        "payload": {"$ref": f"#/components/schemas/{shapes.names[message]}"},
        "examples": [{"payload": example_of(message)}],
    }


def _draft_07(schema: Any) -> Any:
    """AsyncAPI names the field that tells shapes apart, without the list of what it may say."""
    if isinstance(schema, Mapping):
        inner = {name: _draft_07(value) for name, value in schema.items()}
        if isinstance(inner.get("discriminator"), dict) and "propertyName" in inner["discriminator"]:
            inner["discriminator"] = inner["discriminator"]["propertyName"]
        return inner
    return [_draft_07(item) for item in schema] if isinstance(schema, list) else schema
