"""Work folders of containers, on the disk of this machine.

What a container leaves there is a stranger's: no link in it is followed, and nothing but plain files is read.
"""

import asyncio
import contextlib
import os
import shutil
import stat
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from services.node_agent.container_spec import MOST_OUTPUT_BYTES
from services.node_agent.model import JobFailed

T = TypeVar("T")

BLOCK_BYTES = 512
LEAST_FILE_BYTES = 4096
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Not blocking: opening a pipe would otherwise wait for somebody to write.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class DiskWorkFolders:
    """See `WorkFolders`. In `home` no other user of this machine can look; inside, every container writes its own."""

    def __init__(self, home: Path) -> None:
        self._home = home.resolve()
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="work-folders")

    def close(self) -> None:
        self._threads.shutdown(wait=False)

    async def prepare(self, name: str, files: Mapping[str, bytes]) -> str:
        try:
            return await self._do(lambda: self._prepare(name, files))
        except OSError as error:
            raise JobFailed(
                "no_work_folder", f"this node cannot write the job's files: {error.strerror}", retryable=True
            ) from error

    async def used_bytes(self, name: str) -> int:
        return await self._do(lambda: _used_bytes(self._home / name))

    async def take(self, name: str, paths: Sequence[str]) -> Mapping[str, bytes]:
        return await self._do(lambda: _taken(self._home / name, paths))

    async def remove(self, name: str) -> None:
        await self._do(lambda: _remove(self._home / name))

    async def remove_others(self, kept: Collection[str]) -> None:
        def remove() -> None:
            for folder in self._home.iterdir() if self._home.is_dir() else ():
                if folder.name not in kept:
                    _remove(folder)

        await self._do(remove)

    async def _do(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def _prepare(self, name: str, files: Mapping[str, bytes]) -> str:
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._home.chmod(0o700)
        folder = self._home / name
        folder.mkdir()
        folder.chmod(0o777)
        for path, content in files.items():
            place = folder / path
            for parent in reversed([each for each in place.parents if each.is_relative_to(folder) and each != folder]):
                parent.mkdir(exist_ok=True)
                parent.chmod(0o777)
            place.write_bytes(content)
            place.chmod(0o666)
        return str(folder)


def _used_bytes(folder: Path) -> int:
    used = 0
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            with contextlib.suppress(OSError):
                found = Path(place, name).lstat()
                used += max(LEAST_FILE_BYTES, found.st_blocks * BLOCK_BYTES)
    return used


def _taken(folder: Path, paths: Sequence[str]) -> dict[str, bytes]:
    taken: dict[str, bytes] = {}
    for path in paths:
        taken[path] = _content(folder, path, MOST_OUTPUT_BYTES - sum(map(len, taken.values())))
    return taken


def _content(folder: Path, path: str, most: int) -> bytes:
    """One step at a time from the folder on, so that no link on the way leads anywhere else."""
    *parents, name = path.split("/")
    with contextlib.ExitStack() as opened:
        try:
            place = _opened(opened, str(folder), _FOLDER, None)
            for parent in parents:
                place = _opened(opened, parent, _FOLDER, place)
            file = _opened(opened, name, _FILE, place)
        except FileNotFoundError:
            raise JobFailed("output_missing", f"the job left no file {path}", retryable=False) from None
        except OSError:
            raise _no_plain_file(path) from None
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise _no_plain_file(path)
        with os.fdopen(os.dup(file), "rb") as reading:
            content = reading.read(most + 1)
    if len(content) > most:
        raise JobFailed(
            "output_too_large", f"`outputs` together exceed {MOST_OUTPUT_BYTES} bytes, at {path}", retryable=False
        )
    return content


def _opened(opened: contextlib.ExitStack, name: str, flags: int, folder: int | None) -> int:
    descriptor = os.open(name, flags, dir_fd=folder)
    opened.callback(os.close, descriptor)
    return descriptor


def _no_plain_file(path: str) -> JobFailed:
    return JobFailed(
        "output_refused", f"{path} is no plain file in plain folders; only such are taken", retryable=False
    )


def _remove(folder: Path) -> None:
    """Also what is in folders that nobody may look into. A link to a folder is no folder."""
    for place, folders, _ in os.walk(folder):
        for name in folders:
            inner = Path(place, name)
            if not inner.is_symlink():
                with contextlib.suppress(OSError):
                    inner.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)
