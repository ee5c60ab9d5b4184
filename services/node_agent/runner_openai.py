"""Jobs of inference, run on an engine of this machine over its OpenAI HTTP door."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import httpx

from libs.common.contracts.node_registry import Engine, EngineState
from libs.common.contracts.work_marshaling import Assignment
from libs.common.errors import Malformed
from libs.inference.openai import (
    Answer,
    EngineRequest,
    StreamedAnswer,
    WorkKind,
    error_message,
    read_answer,
    request_for,
)
from libs.inference.sse import EventReader
from services.node_agent.engine import EngineDoor
from services.node_agent.model import JobFailed
from services.node_agent.observer import AgentObserver
from services.node_agent.runner import Began, Runner, Tell, unnoticed

_CONNECT_SECONDS = 5.0
_JSON = {"Content-Type": "application/json"}
_BUSY = frozenset({408, 425, 429, 502, 503, 504})
_KINDS: Mapping[str, WorkKind] = {"inference": "inference", "chat": "chat", "embedding": "embedding"}


class EngineRunner(Runner):
    """As many jobs at once as the engine has slots. `client` keeps its connections."""

    def __init__(self, door: EngineDoor, client: httpx.AsyncClient, observer: AgentObserver) -> None:
        self._door = door
        self._client = client
        self._observer = observer

    @property
    def slots(self) -> int:
        return self._door.now().slots

    @property
    def lingering(self) -> int:
        return 0

    def work_types(self) -> tuple[str, ...]:
        return self._door.work_types() if self._door.now().state == EngineState.READY else ()

    def refusal(self, assignment: Assignment) -> str | None:
        engine = self._door.now()
        if engine.state != EngineState.READY:
            return f"engine {engine.engine_id} is {engine.state}" + (f": {engine.problem}" if engine.problem else "")
        if assignment.model_name not in (None, engine.model_name):
            return f"engine {engine.engine_id} serves {engine.model_name}, not {assignment.model_name}"
        return None

    async def run(self, assignment: Assignment, tell: Tell, began: Began = unnoticed) -> dict[str, Any]:
        engine = self._door.now()
        if engine.url is None:
            raise JobFailed("engine_unavailable", self.refusal(assignment) or "the engine is away", retryable=True)
        request = self._request(assignment, engine)
        answer = await self._asked(engine.url, request, tell)
        return self._result(answer, engine)

    def _request(self, assignment: Assignment, engine: Engine) -> EngineRequest:
        try:
            return request_for(_KINDS[assignment.work_type], assignment.payload or {}, engine.model_name)
        except Malformed as error:
            raise JobFailed("bad_payload", error.message, retryable=False) from error

    async def _asked(self, url: str, request: EngineRequest, tell: Tell) -> Answer:
        timeout = httpx.Timeout(None, connect=_CONNECT_SECONDS)
        posted = self._client.stream(
            "POST", url + request.path, content=json.dumps(request.body), headers=_JSON, timeout=timeout
        )
        try:
            async with posted as response:
                if response.status_code != httpx.codes.OK:
                    await response.aread()
                    raise _refused(response)
                if request.stream:
                    return await self._streamed(response, tell)
                await response.aread()
                return read_answer(response.json())
        except httpx.HTTPError as error:
            self._door.suspect()
            # The port and what follows it would tell nobody anything.
            raise JobFailed(
                "engine_unavailable", f"the engine is away: {type(error).__name__}", retryable=True
            ) from error
        except (Malformed, ValueError) as error:
            raise JobFailed("engine_error", f"the engine's answer cannot be used: {error}", retryable=True) from error

    async def _streamed(self, response: httpx.Response, tell: Tell) -> Answer:
        reader, answer = EventReader(), StreamedAnswer()
        async for piece in response.aiter_bytes():
            for event in reader.feed(piece):
                if text := answer.take(event):
                    tell(text)
        return answer.answer()

    def _result(self, answer: Answer, engine: Engine) -> dict[str, Any]:
        usage = asdict(answer.usage) if answer.usage else None
        if answer.usage is not None:
            self._observer.tokens(answer.usage.prompt_tokens, answer.usage.completion_tokens)
        result: dict[str, Any] = {
            "model": answer.model or engine.model_name,
            "usage": usage,
            "engine_id": engine.engine_id,
            "test_model": engine.test_model,
        }
        if answer.embeddings is not None:
            return result | {"embeddings": answer.embeddings}
        text = answer.text.encode(errors="replace").decode()
        result |= {"text": text, "finish_reason": answer.finish_reason}
        return result | {"timings": dict(answer.timings)} if answer.timings else result


def _refused(response: httpx.Response) -> JobFailed:
    status = response.status_code
    try:
        told = response.json()
    except ValueError:
        told = response.text[:1000]
    reason = f"the engine answered {status}: {error_message(told)}"
    if status in _BUSY:
        return JobFailed("engine_busy", reason, retryable=True)
    if status == httpx.codes.NOT_IMPLEMENTED:
        return JobFailed("not_supported", reason, retryable=False)
    if status >= httpx.codes.INTERNAL_SERVER_ERROR:
        return JobFailed("engine_error", reason, retryable=True)
    kind = told.get("error", {}) if isinstance(told, dict) else {}
    if isinstance(kind, dict) and kind.get("type") == "exceed_context_size_error":
        return JobFailed("context_exceeded", reason, retryable=False)
    return JobFailed("bad_payload", reason, retryable=False)


__all__ = ["EngineRunner"]
