"""A gateway's configuration in a folder: `own` is people's, `live` leads to the whole that was put there last."""

import asyncio
import os
import shutil
from hashlib import sha256
from pathlib import Path

from libs.common.errors import Unavailable
from libs.inference.tensorzero import Tree

MOST_FILES, MOST_BYTES = 2000, 64 * 2**20
"""A folder with more is not a gateway's configuration."""

_TREE = ".tree-"


class FolderOfGateway:
    """Every version is a folder of its own; `live` is a link that is renamed over the one before, so that a gateway
    that starts at any moment finds one whole version. The version before is kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def own(self) -> Tree:
        return await asyncio.to_thread(self._read, self._folder / "own")

    async def live(self) -> Tree:
        return await asyncio.to_thread(self._read, self._folder / "live")

    async def put(self, tree: Tree) -> None:
        try:
            await asyncio.to_thread(self._put, tree)
        except OSError as error:
            raise Unavailable(f"the gateway's configuration cannot be written to {self._folder}: {error}") from error

    def _read(self, folder: Path) -> Tree:
        found: dict[str, bytes] = {}
        size = 0
        try:
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    size += path.stat().st_size
                    if len(found) >= MOST_FILES or size > MOST_BYTES:
                        raise Unavailable(f"{folder} holds more than {MOST_FILES} files or {MOST_BYTES} bytes")
                    found[path.relative_to(folder).as_posix()] = path.read_bytes()
        except OSError as error:
            raise Unavailable(f"the gateway's configuration cannot be read in {folder}: {error}") from error
        return found

    def _put(self, tree: Tree) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        live = self._folder / "live"
        before = live.readlink().name if live.is_symlink() else ""
        made = self._folder / f"{_TREE}{_digest(tree)}"
        if made.name != before:
            unfinished = made.with_name(f"{made.name}.unfinished")
            for leftover in (made, unfinished):
                shutil.rmtree(leftover, ignore_errors=True)
            _write(unfinished, tree)
            unfinished.replace(made)
            link = self._folder / ".live.unfinished"
            link.unlink(missing_ok=True)
            link.symlink_to(made.name)
            link.replace(live)
            _to_disk(self._folder)
        for other in self._folder.glob(f"{_TREE}*"):
            if other.name not in (made.name, before):
                shutil.rmtree(other, ignore_errors=True)


def _digest(tree: Tree) -> str:
    whole = sha256()
    for path in sorted(tree):
        whole.update(f"{path}\0{len(tree[path])}\0".encode() + tree[path])
    return whole.hexdigest()[:16]


def _write(folder: Path, tree: Tree) -> None:
    folder.mkdir(parents=True)
    for path, content in tree.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    for made in (*folder.rglob("*"), folder):
        if made.is_dir():
            _to_disk(made)


def _to_disk(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
