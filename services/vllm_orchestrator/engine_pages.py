"""What engines show of themselves over HTTP. Port of `engine_pages_http.py`."""

from typing import Protocol


class EnginePages(Protocol):
    async def metrics(self, url: str) -> str:
        """Its metrics as it writes them. Raises `Unavailable`."""
        ...
