"""A message with every field filled in, always the same: for samples and examples."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from libs.common.contracts.base import Message

MOMENT = "2030-01-01T12:00:00Z"

# What a field of this name holds in every example, so that examples fit together.
BY_NAME: Mapping[str, object] = {
    # ids
    "node_id": "node-1",
    "boot_id": "boot-1",
    "work_id": "item-1",
    "attempt_token": "1.item-1.1",
    "token": "1.item-1.1",
    "running": ["1.item-1.1"],
    "engine_id": "engine-1",
    "uuid": "GPU-00000000-0000-0000-0000-000000000001",
    "epoch": 1,
    "attempt": 1,
    "sequence": 42,
    # work
    "work_type": "inference",
    "model_name": "tiny-llama",
    "priority": 5,
    "payload": {"prompt": "Hello", "max_tokens": 16},
    "result": {"text": "Hello to you", "tokens": 4},
    "timeout_seconds": 300.0,
    "lease_seconds": 30.0,
    "labels": {"room": "cellar"},
    "code": "engine_failed",
    "reason_code": "malformed",
    "reason": "the reason, for people",
    "message": "what happened, for people",
    "subject": "compute.work.submit.v1",
    "stream": "WORK_IN",
    "found_by": "work_marshaling",
    # machines
    "hostname": "cellar",
    "operating_system": "Debian 12",
    "architecture": "x86_64",
    "cores": 8,
    "threads": 16,
    "frequency_mhz": 3600.0,
    "total_mb": 65536,
    "available_mb": 49152,
    "memory_available_mb": 49152,
    "free_mb": 32768,
    "vram_total_mb": 24576,
    "vram_free_mb": 20480,
    "vram_used_mb": 3584,
    "vram_reserved_mb": 512,
    "load_ratio": 0.25,
    "utilization_ratio": 0.25,
    "temperature_celsius": 45.0,
    "heartbeat_seconds": 5.0,
    "vendor": "nvidia",
    "pci_address": "00000000:01:00.0",
    "path": "/",
    "interface": "eth0",
    "address": "192.0.2.1",
    "url": "http://127.0.0.1:8080",
}
BY_PATTERN = ("item-1", "inference", "a", "1", "0" * 32, "0" * 64, "SHA-256=" + "0" * 43 + "=")
JSON_VALUE = {"key": "value"}
KINDS: Mapping[str, type | tuple[type, ...]] = {
    "string": str,
    "object": dict,
    "array": list,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


class NoExample(Exception):
    """A field's type allows nothing that we know how to make: give the field an example."""


def example_of(message: type[Message]) -> dict[str, Any]:
    """JSON values for this message: every field filled in, as far as the fields may stand together."""
    schema = message.model_json_schema()
    full = _Builder(schema.get("$defs", {})).object(schema)
    for candidate in _candidates(full, schema.get("required", [])):
        try:
            return message.model_validate(candidate).model_dump(mode="json")
        except ValidationError as error:
            reason = error
    raise NoExample(f"{message.__name__}: {reason}")


def _candidates(full: dict[str, Any], required: list[str]) -> Iterator[dict[str, Any]]:
    """All fields; all but one; the required ones and one more; the required ones."""
    least = {name: full[name] for name in required}
    optional = [name for name in full if name not in least]
    yield full
    yield from ({name: value for name, value in full.items() if name != left_out} for left_out in optional)
    yield from (least | {name: full[name]} for name in optional)
    yield least


class _Builder:
    def __init__(self, definitions: Mapping[str, Any]) -> None:
        self._definitions = definitions

    def object(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self.value(name, inner) for name, inner in schema.get("properties", {}).items()}

    def value(self, name: str, schema: Mapping[str, Any]) -> Any:
        if "$ref" in schema and not schema.get("examples"):
            return self.value(name, self._definitions[schema["$ref"].rsplit("/", 1)[-1]])
        for choices in ("anyOf", "oneOf"):
            if choices in schema:
                return self._told(name, schema) or self.value(name, _first_real(schema[choices]))
        told = self._told(name, schema)
        return self._made(name, schema) if told is None else told

    def _told(self, name: str, schema: Mapping[str, Any]) -> Any:
        """What the field says of itself, or what we agreed on for its name."""
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return schema["enum"][0]
        if schema.get("examples"):
            return schema["examples"][0]
        known = BY_NAME.get(name)
        return known if known is not None and _is_of_type(known, schema) else None

    def _made(self, name: str, schema: Mapping[str, Any]) -> Any:
        match schema.get("type"):
            case "object":
                return self._mapping(name, schema)
            case "array":
                return self._array(name, schema)
            case "string":
                return MOMENT if schema.get("format") == "date-time" else _text(name, schema)
            case "integer":
                return int(_number(schema, 1))
            case "number":
                return _number(schema, 1.5)
            case "boolean":
                return True
            case _:
                return JSON_VALUE

    def _mapping(self, name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
        if "properties" in schema:
            return self.object(schema)
        inner = schema.get("additionalProperties")
        return {"key": self.value("", inner)} if isinstance(inner, dict) else dict(JSON_VALUE)

    def _array(self, name: str, schema: Mapping[str, Any]) -> list[Any]:
        """One of each kind that may stand in it."""
        if "prefixItems" in schema:
            return [self.value(name, item) for item in schema["prefixItems"]]
        inner = schema.get("items", {})
        return [self.value(name.removesuffix("s"), kind) for kind in inner.get("oneOf", [inner])]


def _first_real(choices: list[dict[str, Any]]) -> dict[str, Any]:
    return next((choice for choice in choices if choice.get("type") != "null"), choices[0])


def _is_of_type(value: object, schema: Mapping[str, Any]) -> bool:
    choices = schema.get("anyOf", [schema])
    return any("type" not in choice or isinstance(value, KINDS[choice["type"]]) for choice in choices)


def _number(schema: Mapping[str, Any], usual: float) -> float:
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    if high is not None and usual >= high:
        return float(high) / 2 if low is None or float(high) / 2 > low else float(high)
    return usual if low is None or usual > low else float(low) + 1


def _text(name: str, schema: Mapping[str, Any]) -> str:
    pattern = re.compile(schema.get("pattern", ""))
    least, most = schema.get("minLength", 0), schema.get("maxLength", 1 << 20)
    for text in (f"{name}-1" if name.endswith("id") else name or "text", *BY_PATTERN):
        if pattern.search(text) and least <= len(text) <= most:
            return text
    raise NoExample(f"nothing known fits {name} with {dict(schema)}")
