"""One folder for each engine: what was asked, who it is, how it ended, what it wrote."""

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from libs.common.contracts.engine_hosting import EngineKey, StartEngine
from libs.common.errors import Unavailable
from services.node_agent.hosted import Begun, Ended, HostedFiles
from services.node_agent.hosted_door import LOOPBACK

LOG_BYTES = 8 * 2**20
KEPT_BYTES = 2**20
WIDEST_CHARACTER = 4


class HostedFolder:
    """See `HostedFiles`. A log that grew too long is cut, and its end kept beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = folder / "engine.lock"
        self.log = folder / "engine.log"
        self.report = (folder / "engine.json").resolve()
        whose = sha256(str(self.report).encode()).hexdigest()[:12]
        self.scratch = Path(tempfile.gettempdir()) / f"mesh-{whose}"  # what has sockets needs a short path
        self._earlier = folder / "engine.log.before"

    def begin(self, begun: Begun) -> None:
        told = {"port": begun.port, "at": begun.at.isoformat(), "pid": begun.pid, "started": begun.started}
        told |= {"host": begun.host, "told": begun.told}
        self._write("begun.json", told | {"asked": begun.asked.model_dump(mode="json")})

    def keep_key(self, key: str) -> str:
        path = (self.folder / "engine.key").resolve()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(key)
        except OSError as error:
            raise Unavailable(f"{path} cannot be written: {error}") from error
        return str(path)

    def begun(self) -> Begun | None:
        found = self._read("begun.json")
        if found is None:
            return None
        try:
            asked = StartEngine.model_validate(found["asked"])
            at, pid, started = datetime.fromisoformat(found["at"]), found["pid"], found["started"]
            return Begun(
                asked=asked,
                port=int(found["port"]),
                at=at,
                host=found.get("host", LOOPBACK),
                told=found.get("told", LOOPBACK),
                pid=None if pid is None else int(pid),
                started=None if started is None else float(started),
            )
        except (KeyError, TypeError, ValueError):
            return None

    def end(self, ended: Ended) -> None:
        shutil.rmtree(self.scratch, ignore_errors=True)
        told = {"asked": ended.asked, "exit_code": ended.exit_code, "reason": ended.reason}
        self._write("ended.json", told | {"at": ended.at.isoformat()})

    def ended(self) -> Ended | None:
        found = self._read("ended.json")
        if found is None:
            return None
        at = datetime.fromisoformat(found["at"])
        return Ended(at=at, asked=found["asked"], exit_code=found["exit_code"], reason=found["reason"])

    def last_characters(self, count: int) -> str:
        wanted = count * WIDEST_CHARACTER
        end = _end_of(self.log, wanted)
        if len(end) < wanted:
            end = _end_of(self._earlier, wanted - len(end)) + end
        return end.decode(errors="replace")[-count:]

    def bound_log(self) -> None:
        """The process appends, so cutting the file under it is safe; what it writes between the two steps is lost."""
        try:
            if self.log.stat().st_size > LOG_BYTES:
                self._earlier.write_bytes(_end_of(self.log, KEPT_BYTES))
                os.truncate(self.log, 0)
        except OSError:
            return  # a full disk: the next look tries again

    def _write(self, name: str, told: dict[str, Any]) -> None:
        unfinished = self.folder / f".{name}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with unfinished.open("w", encoding="utf-8") as file:
                json.dump(told, file)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(self.folder / name)
            _sync(self.folder)
        except OSError as error:
            raise Unavailable(f"{self.folder / name} cannot be written: {error}") from error

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            found = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None


class DiskHostedFolders:
    """See `HostedFolders`. `folder` is the agent's own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "engines"

    def files(self, key: EngineKey) -> HostedFiles:
        return HostedFolder(self._folder / f"{key.instance}.{key.replica}.{key.generation}.{key.rank}")

    def kept(self) -> Sequence[HostedFiles]:
        if not self._folder.is_dir():
            return ()
        return [HostedFolder(folder) for folder in sorted(self._folder.iterdir()) if folder.is_dir()]

    def forget(self, files: HostedFiles) -> None:
        shutil.rmtree(files.log.parent, ignore_errors=True)


def _end_of(path: Path, count: int) -> bytes:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - count))
            return file.read(count)
    except OSError:
        return b""


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
