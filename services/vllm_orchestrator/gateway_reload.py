"""Has a running gateway read its configuration anew, which it does when it starts: by a command, or by a signal."""

import asyncio
import os
import shlex
import signal
from pathlib import Path

import httpx

from libs.common.clock import Clock
from libs.common.errors import Unavailable

POLL_SECONDS = 0.2
COMMAND, PIDFILE = "command:", "pidfile:"


class GatewayReload:
    """`how` is `command:` and a command line, or `pidfile:` and the path of a file with a process's number, which gets
    SIGHUP; empty: nobody is told. With `url` it is waited for: TensorZero tells there which configuration it has."""

    def __init__(self, client: httpx.AsyncClient, clock: Clock, *, how: str, url: str | None, seconds: float) -> None:
        self._client = client
        self._clock = clock
        self._how = how
        self._url = url
        self._seconds = seconds

    async def reload(self) -> None:
        before = await self._configuration()
        if self._how.startswith(COMMAND):
            await self._run(shlex.split(self._how.removeprefix(COMMAND)))
        elif self._how.startswith(PIDFILE):
            await asyncio.to_thread(_hang_up, Path(self._how.removeprefix(PIDFILE)))
        if self._how and self._url:
            await self._until_it_answers(before)

    async def _run(self, command: list[str]) -> None:
        nothing, pipe = asyncio.subprocess.DEVNULL, asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(*command, stdin=nothing, stdout=nothing, stderr=pipe)
        except OSError as error:
            raise Unavailable(f"the command that reloads the gateway cannot be run: {error}") from error
        try:
            async with asyncio.timeout(self._seconds):
                _, said = await process.communicate()
        except TimeoutError:
            raise Unavailable(f"the command that reloads the gateway did not end within {self._seconds:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            words = said.decode(errors="replace").strip()[-300:]
            raise Unavailable(f"the command that reloads the gateway ended with {process.returncode}: {words}")

    async def _until_it_answers(self, before: str | None) -> None:
        """The process that is to end may still answer for a while; one with the same configuration may have come."""
        until = self._clock.monotonic() + self._seconds
        answered = None
        while self._clock.monotonic() < until:
            answered = await self._configuration()
            if answered is not None and answered != before:
                return
            await self._clock.sleep(POLL_SECONDS)
        if answered is None:
            raise Unavailable(f"the gateway at {self._url} did not come back within {self._seconds:g} s")

    async def _configuration(self) -> str | None:
        """The hash of what it has read; None: it does not answer."""
        if not self._url:
            return None
        try:
            answer = await self._client.get(f"{self._url.rstrip('/')}/status", timeout=POLL_SECONDS * 10)
            return str(answer.json().get("config_hash", "")) if answer.is_success else None
        except (httpx.HTTPError, ValueError, AttributeError):
            return None


def _hang_up(path: Path) -> None:
    try:
        os.kill(int(path.read_text(encoding="ascii")), signal.SIGHUP)
    except (OSError, ValueError) as error:
        raise Unavailable(f"the gateway of {path} cannot be told to reload: {error}") from error
