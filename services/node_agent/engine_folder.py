"""The files an engine and its agent share: the lock, the report, the log."""

import contextlib
import json
from pathlib import Path

from services.node_agent.engine_facts import EngineReport

LOG_BYTES = 8 * 1024 * 1024
LAST_LINES, LAST_CHARACTERS = 3, 600


class EngineFolder:
    """See `EngineFiles`."""

    def __init__(self, folder: Path) -> None:
        self.lock = folder / "engine.lock"
        self.log = folder / "engine.log"
        self.report_path = (folder / "engine.json").resolve()

    def clear(self) -> None:
        self.report_path.unlink(missing_ok=True)
        self.log.unlink(missing_ok=True)

    def report(self) -> EngineReport | None:
        try:
            return EngineReport.from_json(json.loads(self.report_path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def last_words(self) -> str:
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            return "it left no output"
        return " | ".join(line.strip() for line in lines[-LAST_LINES:])[-LAST_CHARACTERS:] or "it left no output"

    def bound_log(self) -> None:
        """The process appends, so cutting the file under it is safe."""
        with contextlib.suppress(OSError):
            if self.log.stat().st_size > LOG_BYTES:
                with self.log.open("r+b") as file:
                    file.truncate(0)
