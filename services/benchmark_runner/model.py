"""The nouns of the benchmark runner."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One request as its sender saw it. `error` says what went wrong; then the times mean nothing."""

    end_to_end_seconds: float
    first_token_seconds: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where requests go. `ours`: an engine of this mesh, which is told the mesh's key."""

    base_url: str
    model_name: str
    ours: bool = False
