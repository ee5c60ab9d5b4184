"""What sends requests. Port of `load_http.py`."""

from typing import Protocol

from services.benchmark_runner.model import Sample, Target


class Load(Protocol):
    async def one(
        self, target: Target, prompt: str, *, max_tokens: int, ignore_eos: bool, seed: int, timeout: float
    ) -> Sample:
        """Send one request and measure it. What goes wrong is in the sample, nothing is raised."""
        ...

    async def first_model(self, target: Target) -> str:
        """The first model a server names, whatever the target's is. Raises `Unavailable`."""
        ...
