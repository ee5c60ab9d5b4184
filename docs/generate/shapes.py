"""The JSON Schemas of all messages together, and how a field reads in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from docs.generate.markdown import code, link, sentence

REFERENCE = "#/components/schemas/{model}"

# What the end of a field's name says about its unit.
UNITS = {
    "_mb": "MiB",
    "_bytes": "bytes",
    "_seconds": "seconds",
    "_seconds_ago": "seconds",
    "_ms": "milliseconds",
    "_mhz": "MHz",
    "_mbps": "Mbit/s",
    "_celsius": "°C",
    "_watts": "W",
    "_ratio": "ratio, 1 is all",
    "_tokens": "tokens",
    "_mb_per_gpu": "MiB",
    "fraction": "0 to 1",
}


@dataclass(frozen=True)
class Shapes:
    """`definitions` holds every shape by its name; `names` says which name a message has there.

    `elsewhere` names the page that describes a shape, for those that are not on the same page.
    """

    definitions: Mapping[str, Any]
    names: Mapping[type[BaseModel], str]
    elsewhere: Mapping[str, str] = field(default_factory=dict)

    def fields(self, shape: str) -> list[Sequence[str]]:
        """A row for each field: name, type, what it is when left out, unit, meaning."""
        schema = self.definitions[shape]
        required = schema.get("required", [])
        return [
            [code(name), self.type(inner), _default(inner, name in required), unit(name), _meaning(inner)]
            for name, inner in schema.get("properties", {}).items()
        ]

    def type(self, schema: Mapping[str, Any]) -> str:
        if "$ref" in schema:
            name = schema["$ref"].rsplit("/", 1)[-1]
            target = self.definitions[name]
            return link(name, self.elsewhere.get(name, "")) if "properties" in target else self.type(target)
        for choices in ("anyOf", "oneOf"):
            if choices in schema:
                return " or ".join(self.type(choice) for choice in schema[choices])
        if "const" in schema or "enum" in schema:
            values = [schema["const"]] if "const" in schema else schema["enum"]
            return ", ".join(code(str(value)) for value in values)
        return self._plain(schema)

    def _plain(self, schema: Mapping[str, Any]) -> str:
        match schema.get("type"):
            case "array":
                most = f" (at most {schema['maxItems']})" if "maxItems" in schema else ""
                return f"list of {self.type(schema.get('items', {}))}{most}"
            case "object" if "properties" not in schema:
                inner = schema.get("additionalProperties")
                return f"map of text to {self.type(inner)}" if isinstance(inner, dict) and inner else "JSON object"
            case "string":
                return _text(schema)
            case "integer" | "number":
                return f"{schema['type']}{_bounds(schema)}"
            case None:
                return "any JSON"
            case other:
                return str(other)


def shapes_of(messages: Sequence[type[BaseModel]]) -> Shapes:
    keys, all_of_it = models_json_schema(
        [(message, "validation") for message in dict.fromkeys(messages)], ref_template=REFERENCE
    )
    names = {message: keys[message, "validation"]["$ref"].rsplit("/", 1)[-1] for message in messages}
    return Shapes(definitions=dict(sorted(all_of_it.get("$defs", {}).items())), names=names)


def unit(name: str) -> str:
    fitting = [suffix for suffix in UNITS if name.endswith(suffix)]
    return UNITS[max(fitting, key=len)] if fitting else ""


def _text(schema: Mapping[str, Any]) -> str:
    if schema.get("format") == "date-time":
        return "time (RFC 3339)"
    least, most = schema.get("minLength"), schema.get("maxLength")
    length = f", {least or 0} to {most} characters" if most else f", at least {least} characters" if least else ""
    pattern = f", of the form {code(schema['pattern'])}" if "pattern" in schema else ""
    return f"text{length}{pattern}"


def _bounds(schema: Mapping[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return "".join(f", {sign} {_short(schema[name])}" for name, sign in signs.items() if name in schema)


def _short(number: float) -> str:
    return f"{number:g}" if abs(number) < 1e6 else str(int(number))


def _default(schema: Mapping[str, Any], required: bool) -> str:
    if required:
        return "required"
    default = schema.get("default")
    return "null" if default is None else code(_json_words(default))


def _json_words(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case [] | ():
            return "[]"
        case "":
            return '""'
        case dict() if not value or len(str(value)) > 30:
            return "{}" if not value else "{…}"
        case _:
            return str(value)


def _meaning(schema: Mapping[str, Any]) -> str:
    return sentence(schema.get("description")) if "$ref" not in schema or "description" in schema else ""
