"""Reports as JSON files, one for each run."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import structlog
from pydantic import ValidationError

from libs.common.contracts.benchmark_runner import BenchmarkView
from libs.common.errors import Unavailable

log = structlog.get_logger()

T = TypeVar("T")
MOST_LOADED = 1000


class FileReports:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reports")

    def close(self) -> None:
        self._threads.shutdown()

    async def keep(self, view: BenchmarkView) -> None:
        try:
            await self._off_loop(lambda: self._write(view))
        except OSError as error:
            raise Unavailable(f"the report cannot be kept in {self._folder}: {error}") from error

    async def load(self) -> list[BenchmarkView]:
        return await self._off_loop(self._read)

    def _write(self, view: BenchmarkView) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{view.benchmark_id}.json"
        unfinished = path.with_suffix(".unfinished")
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(view.model_dump_json(indent=2))
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)

    def _read(self) -> list[BenchmarkView]:
        found: list[BenchmarkView] = []
        for path in sorted(self._folder.glob("*.json"))[-MOST_LOADED:]:
            try:
                found.append(BenchmarkView.model_validate_json(path.read_bytes()))
            except (OSError, ValidationError) as error:
                log.warning("report_unreadable", path=str(path), reason=str(error)[:200])
        return found

    async def _off_loop(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)
