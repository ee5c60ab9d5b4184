"""The HTTP door of every service: its own routes, and `/healthz`, `/readyz`, `/metrics`, `/version`, `/docs`.

The page at `/docs` loads its scripts from a public server; without the internet read `/openapi.json`.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.telemetry import TelemetryConfig
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from libs.common.clock import Clock
from libs.common.errors import MeshError
from libs.common.kit.http_guards import (
    MIB,
    BodyLimit,
    LastNet,
    Observed,
    OpenStreams,
    Started,
    StreamsEnd,
    TokenRequired,
)
from libs.common.kit.metrics import CONTENT_TYPE, Metrics
from libs.common.kit.problems import MEDIA_TYPE, Problem, install
from libs.common.kit.service import Check, Degraded, Remark
from libs.common.kit.tracing import NoTracing, Tracing

log = structlog.get_logger()

CHECK_SECONDS = 2.0
# FastAPI traces by itself where it finds OpenTelemetry; the spans of a request are ours to make.
_NO_TELEMETRY: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "operation_spans": False}
_ERRORS = {
    "401": "No token, or a wrong one.",
    "404": "There is no such thing.",
    "405": "The route exists, but not for this method.",
    "409": "The request contradicts what is already there.",
    "413": "The body is too large.",
    "422": "The request cannot be read, or a field has a value that is not allowed.",
    "500": "A bug; told without detail.",
    "503": "Something this needs is away; see `Retry-After`.",
    "504": "No answer came in time.",
}


class Version(BaseModel):
    """What runs here."""

    service: str
    version: str
    python: str
    node_id: str
    boot_id: str


class Health(BaseModel):
    alive: bool = True


class Readiness(BaseModel):
    """Every check by its name: `ok`, or why not."""

    ready: bool
    checks: dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Door:
    """An app ready to be served, and what ends its open streams."""

    app: FastAPI
    streams: OpenStreams


def http_door(
    router: APIRouter,
    *,
    version: Version,
    checks: Mapping[str, Check],
    metrics: Metrics,
    clock: Clock,
    token: str | None = None,
    body_limit_mb: int = 32,
    tracing: Tracing | None = None,
    starting: Callable[[], MeshError | None] = lambda: None,
) -> Door:
    """The app of one service. `checks` decide about `/readyz`; `token`, when given, guards all but `/healthz`.

    While `starting` says why, only these and the other routes of the kit are answered.
    """
    app = FastAPI(title=version.service, version=version.version, redoc_url=None, telemetry=_NO_TELEMETRY)
    # Not `include_router`: FastAPI would look through an included router twice for each request.
    app.router.routes.extend([*router.routes, *_kit_routes(version, checks, metrics).routes])
    install(app)
    streams = OpenStreams()
    app.add_middleware(StreamsEnd, streams=streams)
    app.add_middleware(BodyLimit, limit_bytes=body_limit_mb * MIB)
    app.add_middleware(Started, starting=starting)
    if token is not None:
        app.add_middleware(TokenRequired, token=token)
    app.add_middleware(LastNet)
    app.add_middleware(Observed, service=version.service, metrics=metrics, clock=clock, tracing=tracing or NoTracing())
    _document_errors(app, guarded=token is not None)
    return Door(app=app, streams=streams)


def _kit_routes(version: Version, checks: Mapping[str, Check], metrics: Metrics) -> APIRouter:
    routes = APIRouter(tags=["service"])

    @routes.get("/healthz", response_model=Health)
    async def healthz() -> Health:
        """The process is alive. Says nothing about what it needs."""
        return Health()

    @routes.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness}})
    async def readyz() -> JSONResponse:
        """The service can do its work: 503 and the reason when it cannot."""
        told = await readiness(checks)
        return JSONResponse(told.model_dump(), status_code=200 if told.ready else 503)

    @routes.get("/version", response_model=Version)
    async def version_() -> Version:
        return version

    @routes.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics_page() -> Response:
        """For Prometheus."""
        return Response(metrics.page(), media_type=CONTENT_TYPE)

    return routes


async def readiness(checks: Mapping[str, Check], *, timeout: float = CHECK_SECONDS) -> Readiness:
    """Run all checks at once. One that takes longer than `timeout` seconds counts as failed."""
    checks = dict(checks)
    reasons = await asyncio.gather(*(_reason(name, check, timeout) for name, check in checks.items()))
    told = {name: _words(reason) for name, reason in zip(checks, reasons, strict=True)}
    return Readiness(ready=all(not reason or isinstance(reason, Degraded | Remark) for reason in reasons), checks=told)


def _words(reason: str | None) -> str:
    if isinstance(reason, Remark):
        return f"ok: {reason}"
    return f"degraded: {reason}" if isinstance(reason, Degraded) else reason or "ok"


async def _reason(name: str, check: Check, timeout: float) -> str | None:
    try:
        async with asyncio.timeout(timeout):
            return await check()
    except TimeoutError:
        return f"no answer within {timeout:g} s"
    except MeshError as error:
        return error.message
    except Exception:
        log.exception("check_failed", check=name)
        return "the check itself failed; see the log"


def _document_errors(app: FastAPI, *, guarded: bool) -> None:
    """Every route may answer with a problem document: the OpenAPI document says so once, for all."""

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _with_errors(
                get_openapi(title=app.title, version=app.version, routes=app.routes), guarded=guarded
            )
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]


def _with_errors(document: dict[str, Any], *, guarded: bool) -> dict[str, Any]:
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    schemas["Problem"] = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for path in document.get("paths", {}).values():
        for operation in path.values():
            responses = operation.setdefault("responses", {})
            for status, description in _ERRORS.items():
                if status == "422" or status not in responses:
                    responses[status] = {"description": description, "content": content}
    if guarded:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document
