"""A disk whose syncs are counted, and wait or fail when told to."""

import errno
import os
import threading


class Disk:
    """The machine's own, of which each sync is counted, and waits or fails when told to."""

    def __init__(self) -> None:
        self.syncs = 0
        self.waiting = 0
        self.broken = False
        self.let_go = threading.Event()
        self.let_go.set()

    def fdatasync(self, file: int) -> None:
        self.waiting += 1
        self.let_go.wait(10)
        self.waiting -= 1
        self.syncs += 1
        if self.broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        os.fdatasync(file)


class WithDisk:
    """The module `os`, with another disk."""

    def __init__(self, disk: Disk) -> None:
        self.fdatasync = disk.fdatasync

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)
