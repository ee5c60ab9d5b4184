"""Requests over streaming HTTP in OpenAI's words."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing

import httpx

from libs.common.clock import Clock
from libs.common.errors import Malformed, Unavailable
from libs.inference.openai import COMPLETIONS, StreamedAnswer
from libs.inference.sse import EventReader
from services.benchmark_runner.model import Sample, Target

CONNECT_SECONDS = 5.0
CONNECTION_CLOSED = "connection_closed"


class HttpLoad:
    """`key` is what engines of this mesh want to be told; empty: nothing. No other server hears it."""

    def __init__(self, client: httpx.AsyncClient, clock: Clock, key: str = "") -> None:
        self._client = client
        self._clock = clock
        self._key = key

    async def one(
        self, target: Target, prompt: str, *, max_tokens: int, ignore_eos: bool, seed: int, timeout: float
    ) -> Sample:
        body = {
            "model": target.model_name,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "seed": seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if ignore_eos:
            body["ignore_eos"] = True
        sample = await self._measured(target, body, timeout)
        if sample.error == CONNECTION_CLOSED:
            # Servers end kept connections when they like, also while we send; a new one measures the engine again.
            sample = await self._measured(target, body, timeout)
        return sample

    async def first_model(self, target: Target) -> str:
        try:
            headers = self._headers(target)
            answer = await self._client.get(f"{target.base_url}/v1/models", headers=headers, timeout=CONNECT_SECONDS)
            answer.raise_for_status()
            return str(answer.json()["data"][0]["id"])
        except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
            raise Unavailable(f"{target.base_url} does not name its models: {error!r}") from error

    def _headers(self, target: Target) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key}"} if self._key and target.ours else {}

    async def _measured(self, target: Target, body: dict[str, object], timeout: float) -> Sample:
        sent = self._clock.monotonic()
        try:
            async with asyncio.timeout(timeout):
                return await self._answered(target, body, sent)
        except TimeoutError:
            error = "timed_out"
        except httpx.HTTPError as problem:
            error = type(problem).__name__
        except Malformed:
            error = "unusable_answer"
        return Sample(end_to_end_seconds=self._clock.monotonic() - sent, error=error)

    async def _answered(self, target: Target, body: dict[str, object], sent: float) -> Sample:
        timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
        request = self._client.build_request(
            "POST", target.base_url + COMPLETIONS, json=body, headers=self._headers(target), timeout=timeout
        )
        try:
            response = await self._client.send(request, stream=True)
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            return Sample(end_to_end_seconds=self._clock.monotonic() - sent, error=CONNECTION_CLOSED)
        async with aclosing(response):
            if response.status_code != httpx.codes.OK:
                return Sample(end_to_end_seconds=self._clock.monotonic() - sent, error=f"http_{response.status_code}")
            return await self._read(response, sent)

    async def _read(self, response: httpx.Response, sent: float) -> Sample:
        reader, answer = EventReader(), StreamedAnswer()
        first: float | None = None
        async for piece in response.aiter_bytes():
            now = self._clock.monotonic()
            if any(_texts(reader, answer.take, piece)) and first is None:
                first = now - sent
        usage = answer.answer().usage
        return Sample(
            end_to_end_seconds=self._clock.monotonic() - sent,
            first_token_seconds=first,
            prompt_tokens=usage.prompt_tokens if usage else 0,
            completion_tokens=usage.completion_tokens if usage else 0,
        )


def _texts(reader: EventReader, take: Callable[[str], str], piece: bytes) -> list[str]:
    return [take(event) for event in reader.feed(piece)]
