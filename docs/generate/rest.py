"""`docs/reference/rest.md`: every route of every service, from their OpenAPI documents."""

from collections.abc import Iterator, Mapping
from typing import Any

from docs.generate.markdown import code, page, sentence, table
from docs.generate.running import Built, built_services
from docs.generate.shapes import Shapes, shapes_of
from libs.common.contracts.base import ErrorReply
from libs.common.contracts.catalogue import catalogue

INTRODUCTION = """\
Bodies are JSON. Errors are RFC 9457 problem documents (`application/problem+json`) with the `code` that
[errors](errors.md) lists. With `API_TOKEN` set, every route but `/healthz` wants `Authorization: Bearer`. Each service
shows its own routes to try out under `/docs`.

What a service answers beyond the errors listed here: 401 without a valid token, 413 for a body that is too large, 422
for one that cannot be read, 500 for a bug, 503 while something it needs is away."""

KIT = "service"
USUAL = ("401", "404", "405", "409", "413", "422", "500", "503", "504")
FIELD_HEAD = ["field", "type", "default", "unit", "meaning"]
Operation = Mapping[str, Any]


def rest() -> str:
    services = built_services()
    shapes = _shapes(services)
    own = [name for name in shapes.definitions if name not in shapes.elsewhere]
    return page(
        "REST",
        INTRODUCTION,
        _ports(services),
        "## Every service",
        *(part for service in services[:1] for part in _routes(service, shapes, kit=True)),
        *(part for service in services for part in _service(service, shapes)),
        "## Shapes",
        "What is said over NATS too is described with the [subjects](subjects.md#messages).",
        *(part for name in own for part in _shape(name, shapes)),
    )


def _shapes(services: tuple[Built, ...]) -> Shapes:
    told = shapes_of([*catalogue().messages().values(), ErrorReply]).definitions
    definitions: dict[str, Any] = {}
    for service in services:
        for name, schema in service.openapi.get("components", {}).get("schemas", {}).items():
            if definitions.setdefault(name, schema) != schema:
                raise ValueError(f"{service.name} means something else by {name} than another service")
    elsewhere = {name: "subjects.md" for name in definitions if name in told}
    return Shapes(definitions=dict(sorted(definitions.items())), names={}, elsewhere=elsewhere)


def _ports(services: tuple[Built, ...]) -> str:
    rows = [[f"[{s.name}](#{s.name})", str(s.port), ", ".join(map(code, s.checks))] for s in services]
    return table(["service", "port", "checks of `/readyz`"], rows)


def _service(service: Built, shapes: Shapes) -> Iterator[str]:
    yield f"## {service.name}"
    yield f"Port {service.port}."
    yield from _routes(service, shapes, kit=False)


def _routes(service: Built, shapes: Shapes, *, kit: bool) -> Iterator[str]:
    for path, method, operation in _operations(service, kit=kit):
        yield from _route(path, method, operation, shapes)


def _operations(service: Built, *, kit: bool) -> Iterator[tuple[str, str, Operation]]:
    for path, methods in service.openapi["paths"].items():
        for method, operation in methods.items():
            if (KIT in operation.get("tags", [])) == kit:
                yield path, method.upper(), operation


def _route(path: str, method: str, operation: Operation, shapes: Shapes) -> Iterator[str]:
    yield f"### {method} {path}"
    yield sentence(operation.get("description") or operation.get("summary"))
    parameters = [_parameter(parameter, shapes) for parameter in operation.get("parameters", [])]
    if parameters:
        yield table(["parameter", "in", "type", "default", "meaning"], parameters)
    if "requestBody" in operation:
        yield f"Body: {_content(operation['requestBody'], shapes)}."
    yield "\n".join(f"- {line}" for line in _answers(operation["responses"], shapes))


def _parameter(parameter: Mapping[str, Any], shapes: Shapes) -> list[str]:
    schema = parameter["schema"]
    default = "required" if parameter.get("required") else code(str(schema.get("default") or ""))
    return [
        code(parameter["name"]),
        parameter["in"],
        shapes.type(schema),
        default,
        sentence(parameter.get("description")),
    ]


def _answers(responses: Mapping[str, Any], shapes: Shapes) -> Iterator[str]:
    for status, response in responses.items():
        content = _content(response, shapes)
        if status not in USUAL or (content and "Problem" not in content):
            yield f"{status}: {content or sentence(response.get('description'))}"


def _content(described: Mapping[str, Any], shapes: Shapes) -> str:
    kinds = [
        shapes.type(content["schema"]) if content.get("schema") else code(media)
        for media, content in described.get("content", {}).items()
    ]
    return " or ".join(dict.fromkeys(kinds))


def _shape(name: str, shapes: Shapes) -> Iterator[str]:
    schema = shapes.definitions[name]
    if "properties" in schema:
        yield f"### {name}"
        yield sentence(schema.get("description"))
        yield table(FIELD_HEAD, shapes.fields(name))
