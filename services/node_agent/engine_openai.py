"""An engine that somebody else runs on this machine and that speaks OpenAI's HTTP interface: watched, never ended."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import NoReturn

import httpx
import structlog

from libs.common.clock import Clock
from libs.common.contracts.node_agent import EngineView
from libs.common.contracts.node_registry import Engine, EngineState
from libs.common.errors import MeshError, Unavailable
from libs.inference.openai import MODELS, models_in
from services.node_agent.model import EMBEDDING_TYPE, INFERENCE_TYPES

log = structlog.get_logger()

LOOK_SECONDS = 2.0
ANSWER_SECONDS = 10.0


class OpenAIEngine:
    """One model of it. `model_name` None: the first that it lists. `run` looks after it until it is cancelled."""

    def __init__(
        self,
        engine_id: str,
        *,
        url: str,
        model_name: str | None,
        slots: int,
        embeddings: bool,
        client: httpx.AsyncClient,
        clock: Clock,
        changed: Callable[[], None],
    ) -> None:
        self._engine_id = engine_id
        self._url = url
        self._wanted = model_name
        self._slots = slots
        self._embeddings = embeddings
        self._client = client
        self._clock = clock
        self._changed = changed
        self._model_name = model_name or ""
        self._state = EngineState.STARTING
        self._problem: str | None = None
        self._suspected = asyncio.Event()

    def now(self) -> Engine:
        return Engine(
            engine_id=self._engine_id,
            kind="openai",
            model_name=self._model_name,
            state=self._state,
            device="unknown",
            device_reason="an engine that is not ours does not tell",
            url=self._url if self._state == EngineState.READY else None,
            slots=self._slots,
            problem=self._problem,
        )

    def view(self) -> EngineView:
        return EngineView(**self.now().model_dump())

    def work_types(self) -> tuple[str, ...]:
        return (*INFERENCE_TYPES, EMBEDDING_TYPE) if self._embeddings else INFERENCE_TYPES

    def suspect(self) -> None:
        self._suspected.set()

    async def run(self) -> NoReturn:
        while True:
            try:
                self._become(EngineState.READY, await self._served(), None)
            except MeshError as error:
                self._become(EngineState.FAILED, self._model_name, error.message)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._suspected.wait()
            self._suspected.clear()

    async def stop(self) -> None:
        """It is not ours to end."""
        self._become(EngineState.STOPPED, self._model_name, None)

    async def _served(self) -> str:
        """The model to ask for. Raises `Unavailable` or `Malformed`."""
        try:
            answer = await self._client.get(self._url + MODELS, timeout=ANSWER_SECONDS)
            answer.raise_for_status()
            models = models_in(answer.json())
        except (httpx.HTTPError, ValueError) as error:
            raise Unavailable(f"{self._url}{MODELS} does not answer as an engine does: {_reason(error)}") from error
        if self._wanted is not None and self._wanted not in models:
            raise Unavailable(f"the engine serves {', '.join(models)}, not {self._wanted} as MODEL_NAME says")
        return self._wanted or models[0]

    def _become(self, state: EngineState, model_name: str, problem: str | None) -> None:
        if (state, model_name, problem) == (self._state, self._model_name, self._problem):
            return
        self._state, self._model_name, self._problem = state, model_name, problem
        log.info("engine_state", engine=self._engine_id, state=state, model=model_name, reason=problem)
        self._changed()


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
