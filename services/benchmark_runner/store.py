"""Where reports are kept. Port of `store_files.py`."""

from typing import Protocol

from libs.common.contracts.benchmark_runner import BenchmarkView


class Reports(Protocol):
    async def keep(self, view: BenchmarkView) -> None:
        """Raises `Unavailable` when it cannot be written."""
        ...

    async def load(self) -> list[BenchmarkView]:
        """All that were kept; a report that cannot be read is left out and logged."""
        ...
