"""Engines that somebody else runs. Port of `externals_http.py`."""

from typing import Protocol


class Externals(Protocol):
    async def problem(self, url: str, model_name: str) -> str:
        """Why it would not serve this model now; empty: it would."""
        ...
