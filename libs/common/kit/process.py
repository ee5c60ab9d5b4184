"""What the services of one process share: where they stand, when they stop, and why."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from libs.common.archive.archive import Archive
from libs.common.archive.open_archive import open_archive
from libs.common.bus.transport import Connect
from libs.common.clock import Clock
from libs.common.errors import MeshError, WrongSetting
from libs.common.kit.http import Version
from libs.common.kit.settings import PlatformSettings

log = structlog.get_logger()


class ServiceFailed(MeshError):
    """A part of a service ended that must not end. It was logged where it was noticed."""

    code = "service_failed"


class Meeting:
    """Where services wait for one another, so that none starts work before all could take their ports."""

    def __init__(self, expected: int) -> None:
        self._missing = expected
        self._complete = asyncio.Event()

    async def arrive(self) -> None:
        self._missing -= 1
        if self._missing == 0:
            self._complete.set()
        await self._complete.wait()


@dataclass(kw_only=True)
class Process:
    """Stops all services of a process when one of them fails."""

    settings: PlatformSettings
    connect: Connect
    clock: Clock
    node_id: str
    boot_id: str
    data_dir: Path
    version: str
    python: str
    stop: asyncio.Event
    meeting: Meeting
    failure: MeshError | None = None
    _told: set[str] = field(default_factory=set)
    _archive: Archive | None = None

    def archive(self) -> Archive:
        """One for all services of the process. Raises `WrongSetting`."""
        if self._archive is None:
            key = self.settings.supabase_service_key
            self._archive = open_archive(
                self.settings.archive_url,
                supabase_url=self.settings.supabase_url,
                service_key=key.get_secret_value() if key else None,
                data_dir=self.data_dir,
            )
        return self._archive

    async def close(self) -> None:
        """Once no service lives any more."""
        if self._archive is not None:
            await self._archive.close()

    def fail(self, service: str, part: str, error: BaseException | str) -> None:
        """Take everything down, in order. The first failure is the one that is told in the end."""
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        self.stop.set()
        if isinstance(error, WrongSetting):
            self.remember(error)
            return
        expected = isinstance(error, (MeshError, str))
        reason = str(error) if expected else f"{type(error).__name__}: {error}"
        if reason not in self._told:  # all services lose the same server with the same words
            self._told.add(reason)
            log.error("service_failed", service=service, part=part, reason=reason, exc_info=None if expected else error)
        self.remember(ServiceFailed(f"{service}: {part}: {reason}", service=service, part=part))

    def remember(self, error: MeshError) -> None:
        """Keep what the process ends with. Wrong settings are collected, one to a line."""
        if self.failure is None:
            self.failure = error
        elif isinstance(self.failure, WrongSetting) and isinstance(error, WrongSetting):
            known = self.failure.message.split("\n")
            if error.message not in known:
                self.failure = WrongSetting("\n".join([*known, error.message]))

    def version_of(self, service: str) -> Version:
        return Version(
            service=service, version=self.version, python=self.python, node_id=self.node_id, boot_id=self.boot_id
        )
