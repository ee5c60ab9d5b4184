"""Logs: one line per event, with the ids that join the lines across services.

Our own lines and those of libraries take the same way to the same place. Times are UTC.
"""

import io
import logging
import sys
from pathlib import Path
from typing import Any, Literal, TextIO, cast

import structlog
from structlog.typing import EventDict, Processor

from libs.common.bus.observer import correlation_id

Format = Literal["console", "json"]
Level = Literal["debug", "info", "warning", "error"]

LARGE_BYTES = 20 * 1024 * 1024


def configure(format: Format, level: Level, *, file: Path | None = None) -> None:
    """Send all logs to stderr, or to `file`. Called once, at start, by whoever owns the process."""
    lines = sys.stderr if file is None else cast(TextIO, BoundedFile(file))
    handler = logging.StreamHandler(lines)
    chain = [*_context(), *_rendering(format, lines)]
    structlog.configure(
        processors=chain,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=lines),
        cache_logger_on_first_use=True,
    )
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*_context(), structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_rendering(format, lines)],
        )
    )
    _route_libraries(handler, level)


class BoundedFile(io.TextIOBase):
    """A log file that stays small: what has grown large is put aside as `….1`, and only the newest of those is kept."""

    def __init__(self, path: Path, large_bytes: int = LARGE_BYTES) -> None:
        self._path = path
        self._large_bytes = large_bytes
        self._open()

    def _open(self) -> None:
        self._file = self._path.open("a", encoding="utf-8", buffering=1)
        self._bytes = self._path.stat().st_size

    def write(self, text: str) -> int:
        if self._bytes > self._large_bytes:
            self._file.close()
            self._path.replace(self._path.with_suffix(self._path.suffix + ".1"))
            self._open()
        self._bytes += len(text)
        return self._file.write(text)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _route_libraries(handler: logging.Handler, level: Level) -> None:
    """Libraries are a step quieter than we are: httpx would log every request as information."""
    root = logging.getLogger()
    for former in list(root.handlers):
        root.removeHandler(former)
    root.addHandler(handler)
    root.setLevel({"debug": logging.INFO, "error": logging.ERROR}.get(level, logging.WARNING))
    logging.captureWarnings(True)


def _context() -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_correlation_id,
    ]


def _rendering(format: Format, lines: TextIO) -> list[Processor]:
    if format == "json":
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    return [
        structlog.dev.ConsoleRenderer(colors=lines.isatty(), exception_formatter=structlog.dev.plain_traceback),
    ]


def _add_correlation_id(_logger: Any, _method: str, event: EventDict) -> EventDict:
    own = correlation_id()
    if own is not None:
        event.setdefault("correlation_id", own)
    return event
