"""Every REST error is a problem document (RFC 9457) with the same `code` as on NATS."""

import json
import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from libs.common.bus.observer import correlation_id
from libs.common.errors import Forbidden, Malformed, MeshError, NotFound, TooLarge, Unauthorized, Unavailable

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 1
_LONGEST_VALUE = 200
_MOST_ERRORS = 20


class MethodNotAllowed(MeshError):
    """The route exists, but not for this method."""

    code = "method_not_allowed"
    status = 405


class Problem(BaseModel):
    """Why a request was declined."""

    type: str = Field(description="Names the kind of problem: `urn:compute-mesh:problem:` and the code.")
    title: str
    status: int
    detail: str = Field(description="What is wrong, for people.")
    instance: str = Field(description="The path that was asked for.")
    code: str = Field(description="Stable, for programs; the same on NATS.")
    details: dict[str, Any] = {}
    correlation_id: str | None = None


def problem_response(
    error: MeshError, *, instance: str, status: int | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """The problem document of an error. A 503 says when to try again."""
    status = status or error.status
    document = {
        "type": f"urn:compute-mesh:problem:{error.code}",
        "title": error.code.replace("_", " ").capitalize(),
        "status": status,
        "detail": error.message,
        "instance": instance,
        "code": error.code,
        "details": _plain(error.details),
        "correlation_id": correlation_id(),
    }
    sent = dict(headers or {})
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        sent.setdefault("Retry-After", _retry_after(error))
    if status == HTTPStatus.UNAUTHORIZED:
        sent.setdefault("WWW-Authenticate", "Bearer")
    body = json.dumps(document, ensure_ascii=False).encode("utf-8", errors="replace")
    return Response(body, status_code=status, headers=sent, media_type=MEDIA_TYPE)


def _retry_after(error: MeshError) -> str:
    """Whole seconds, at least one: as the error says, if it does."""
    said = error.details.get("retry_after_seconds")
    return str(max(1, math.ceil(said)) if isinstance(said, (int, float)) else RETRY_AFTER_SECONDS)


def malformed_request(errors: Sequence[Mapping[str, Any]]) -> Malformed:
    """What is wrong with a request, field by field: its name, its value, what is allowed."""
    told = [_field_error(error) for error in errors[:_MOST_ERRORS]]
    first = told[0] if told else {"field": "body", "allowed": "cannot be read"}
    more = f" ({len(errors) - 1} more)" if len(errors) > 1 else ""
    return Malformed(f"{first['field']}: {first['allowed']}{more}", errors=told)


def install(app: FastAPI) -> None:
    """Let the app answer its own and Starlette's errors with problem documents."""

    async def declined(request: Request, error: Exception) -> Response:
        assert isinstance(error, MeshError)
        return problem_response(error, instance=request.url.path)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return problem_response(malformed_request(error.errors()), instance=request.url.path)

    async def by_framework(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        known = _of_framework(error, request)
        return problem_response(known, instance=request.url.path, headers=error.headers)

    app.add_exception_handler(MeshError, declined)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, by_framework)


def _of_framework(error: HTTPException, request: Request) -> MeshError:
    detail = str(error.detail)
    match error.status_code:
        case HTTPStatus.NOT_FOUND:
            return NotFound(f"There is no route {request.url.path}.")
        case HTTPStatus.METHOD_NOT_ALLOWED:
            return MethodNotAllowed(f"{request.url.path} does not take {request.method}.")
        case HTTPStatus.UNAUTHORIZED:
            return Unauthorized(detail)
        case HTTPStatus.FORBIDDEN:
            return Forbidden(detail)
        case HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            return TooLarge(detail)
        case HTTPStatus.SERVICE_UNAVAILABLE:
            return Unavailable(detail)
        case status if HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR:
            return Malformed("The body cannot be read." if "parsing the body" in detail else detail)
        case _:
            return MeshError("internal error")


def _field_error(error: Mapping[str, Any]) -> dict[str, Any]:
    if error.get("type") == "json_invalid":
        at = error.get("loc", ("body", 0))[-1]
        return {"field": "body", "allowed": f"is not JSON at character {at}: {error.get('ctx', {}).get('error', '')}"}
    where = [str(part) for part in error.get("loc", ())]
    field = ".".join(where[1:] if where[:1] == ["body"] and len(where) > 1 else where)
    told: dict[str, Any] = {"field": field or "body", "allowed": _allowed(error)}
    if error.get("type") != "missing":
        told["value"] = _shown(error.get("input"))
    return told


def _allowed(error: Mapping[str, Any]) -> str:
    message = str(error.get("msg", "is not allowed")).removeprefix("Value error, ")
    return "is required" if error.get("type") == "missing" else message.replace("Input should", "should", 1)


def _shown(value: Any) -> Any:
    """A value as it may be told back: short, and JSON."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < 2**53:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    try:
        text = value if isinstance(value, str) else repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or an integer of more digits than Python prints
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + "…"


def _plain(details: Mapping[str, object]) -> Any:
    """Details are JSON by promise; where a caller broke it, what cannot be JSON is told as text."""
    try:
        json.dumps(details, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return {key: _shown(value) for key, value in details.items()}
    return details
