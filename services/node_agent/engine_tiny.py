"""The test model, made where there is none yet."""

import sys
from pathlib import Path

import structlog

from libs.common.errors import Unavailable
from services.node_agent.process import Launcher

log = structlog.get_logger()

MAKE_SECONDS = 120.0


class TinyModel:
    """Makes the test model where there is none yet."""

    def __init__(self, launcher: Launcher, *, path: Path) -> None:
        self._launcher = launcher
        self.path = path

    async def ensure(self) -> None:
        """Raises `Unavailable` when it cannot be made."""
        if self.path.is_file():
            return
        command = [sys.executable, "-m", "services.node_agent.tiny_model", str(self.path)]
        status, output = await self._launcher.run(command, timeout=MAKE_SECONDS)
        if status != 0:
            raise Unavailable(f"the test model could not be made: {output.strip().splitlines()[-1:]}")
        log.info("test_model_made", path=str(self.path))
