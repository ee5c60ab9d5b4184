"""Lines that are on their way into a journal: a file that is written at once and outlives the process meanwhile.

To write some lines takes microseconds, a transaction of SQLite ten times as long. It is not synced: what a power
failure takes from it had not been promised to anybody.
"""

import contextlib
import errno
import os
from collections.abc import Sequence
from pathlib import Path

from libs.common.errors import Unavailable


class Notes:
    """Emptied whenever all that was noted is in the journal."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1
        self._length = 0
        self._lines = 0

    def open(self) -> Sequence[bytes]:
        """What an earlier process left. Raises `Unavailable`."""
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            with open(self._file, "rb", closefd=False) as file:
                left = file.read().split(b"\n")
        except OSError as error:
            raise Unavailable(f"{self._path} cannot be opened: {error}") from error
        return left[:-1]  # behind the last line break there is nothing, or what was never written whole

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def write(self, lines: Sequence[bytes]) -> None:
        """Raises `Unavailable`: then nothing of it is there."""
        noted = b"".join(line + b"\n" for line in lines)
        try:
            if os.pwrite(self._file, noted, self._length) < len(noted):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._length)
            raise Unavailable(f"{self._path} cannot be written: {error}") from error
        self._length += len(noted)
        self._lines += len(lines)

    def settle(self, lines: int) -> None:
        """So many are in the journal."""
        self._lines -= lines
        if self._lines == 0:
            self.empty()

    def empty(self) -> None:
        """What an earlier process left is in the journal."""
        os.ftruncate(self._file, 0)
        self._length = self._lines = 0
