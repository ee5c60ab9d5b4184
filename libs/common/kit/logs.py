"""Logs: one line per event, with the ids that join the lines across services.

Our own lines and those of libraries take the same way to the same place. Times are UTC.
"""

import logging
import sys
from pathlib import Path
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor

from libs.common.bus.observer import correlation_id

Format = Literal["console", "json"]
Level = Literal["debug", "info", "warning", "error"]


def configure(format: Format, level: Level, *, file: Path | None = None) -> None:
    """Send all logs to stderr, or to `file`. Called once, at start, by whoever owns the process."""
    lines = sys.stderr if file is None else file.open("a", encoding="utf-8", buffering=1)
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
