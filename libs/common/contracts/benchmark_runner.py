"""What is asked of and told about benchmark runs."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from libs.common.contracts.base import Message, Moment
from libs.common.contracts.node_registry import Engine


class BenchmarkState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class BenchmarkRequest(Message):
    """A closed-loop load on one engine: `concurrency` users, each sending its next request when the last is answered.

    The engine is found by `model_name` (any that is ready when neither is given), or is the one at `base_url`.
    """

    model_name: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = None
    base_url: Annotated[str, StringConstraints(pattern=r"^https?://[^\s/?#]+(/[^\s?#]*)?$", max_length=512)] | None = (
        Field(None, description="an OpenAI-compatible server, without `/v1`")
    )
    requests: int = Field(50, ge=1, le=100_000)
    concurrency: int = Field(4, ge=1, le=1024)
    prompt_tokens: int = Field(64, ge=1, le=131_072, description="aimed at; what was achieved is reported")
    max_tokens: int = Field(64, ge=1, le=131_072)
    ignore_eos: bool = Field(
        True, description="have the engine write on after the end token, so that lengths are equal"
    )
    timeout_seconds: float = Field(60.0, gt=0, le=3600, description="for one request")
    seed: int = Field(0, ge=0, le=2**31 - 1)
    background: bool = Field(False, description="answer at once; the result is fetched later")


class Summary(Message):
    """A distribution. Percentiles are interpolated; with few samples the high ones are little more than the maximum."""

    count: int
    mean: float
    minimum: float
    p50: float
    p90: float
    p95: float
    p99: float
    maximum: float


class BenchmarkResult(Message):
    """Times in seconds. Tokens are those the engine counted (`usage`), never guessed from text."""

    duration_seconds: float
    requests_completed: int
    requests_failed: int
    errors: dict[str, int] = Field({}, description="failed requests by what went wrong")
    prompt_tokens: int
    completion_tokens: int
    requests_per_second: float
    completion_tokens_per_second: float
    total_tokens_per_second: float
    time_to_first_token_seconds: Summary | None = Field(None, description="from sending to the first text")
    time_per_output_token_seconds: Summary | None = Field(
        None, description="(end to end - time to first token) / (completion tokens - 1)"
    )
    end_to_end_seconds: Summary | None = None
    prompt_tokens_per_request: Summary | None = None
    notes: tuple[str, ...] = ()


class BenchmarkView(Message):
    """A run: what was asked, against what, how far it is, what came out."""

    benchmark_id: str
    state: BenchmarkState
    request: BenchmarkRequest
    created_at: Moment
    started_at: Moment | None = None
    ended_at: Moment | None = None
    requests_done: int = 0
    model_name: str | None = None
    node_id: str | None = None
    engine: Engine | None = None
    base_url: str | None = None
    result: BenchmarkResult | None = None
    problem: str | None = None


class Benchmarks(Message):
    benchmarks: tuple[BenchmarkView, ...]
