"""TensorZero's own word on a tree of configuration: its gateway is started on it, in a child process."""

import asyncio
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from libs.common.errors import Unavailable
from libs.inference.tensorzero import Complaint, Tree, complaints
from services.vllm_orchestrator.model import GATEWAY_MISSING, GATEWAY_SAID, GATEWAY_STARTS

SECONDS = 30.0
MOST_SECRETS = 100
_SECRET = re.compile(r"Environment variable `(\w+)` is missing")
_MESSAGE = re.compile(r'message: "((?:[^"\\]|\\.)*)"')


class TensorZeroJudge:
    """Our own checks name the file at fault; what passes them is shown to the gateway, where it is installed.

    Keys of other providers are the gateway's to have: here each that is missing is made up.
    """

    def __init__(self, command: Sequence[str] = (sys.executable, "-m", "services.vllm_orchestrator.check_tensorzero")):
        self._command = command
        self._installed = True

    @property
    def by(self) -> str:
        return (
            "TensorZero's gateway" if self._installed else "checks of our own: the package tensorzero is not installed"
        )

    async def judge(self, tree: Tree) -> list[Complaint]:
        found = complaints(tree)
        if found or not self._installed:
            return found
        with tempfile.TemporaryDirectory(prefix="tensorzero-") as folder:
            await asyncio.to_thread(_lay_out, Path(folder), tree)
            said = await self._asked(f"{folder}/**/*.toml")
        return [Complaint("the whole", said.replace(f"{folder}/", ""))] if said else []

    async def _asked(self, pattern: str) -> str:
        """What the gateway says against it; empty: nothing."""
        secrets: dict[str, str] = {}
        while True:
            status, said = await self._run(pattern, secrets)
            if status == GATEWAY_MISSING:
                self._installed = False
            if status in (GATEWAY_STARTS, GATEWAY_MISSING):
                return ""
            wanted = _SECRET.search(said)
            if wanted is None or wanted[1] in secrets or len(secrets) >= MOST_SECRETS:
                message = _MESSAGE.search(said)
                return (message[1].replace('\\"', '"').replace("\\n", " ") if message else said)[:1000]
            secrets[wanted[1]] = "made-up"

    async def _run(self, pattern: str, secrets: dict[str, str]) -> tuple[int, str]:
        pipe, nothing = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        process = await asyncio.create_subprocess_exec(
            *self._command, pattern, env=secrets, stdin=nothing, stdout=pipe, stderr=pipe
        )
        try:
            async with asyncio.timeout(SECONDS):
                out, err = await process.communicate()
        except TimeoutError:
            raise Unavailable(f"TensorZero's gateway did not tell within {SECONDS:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        said = out.decode(errors="replace").rpartition(GATEWAY_SAID)[2]
        return process.returncode or 0, said or err.decode(errors="replace")[-1000:]


def _lay_out(folder: Path, tree: Tree) -> None:
    for path, content in tree.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
