"""The processor: what it is (slow to find out, kept on disk) and what of it may be used (read each time)."""

import asyncio
import contextlib
import hashlib
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from libs.common.contracts.node_registry import Cpu
from libs.common.errors import MeshError, TimedOut, Unavailable
from libs.hardware.cgroup import Limits, usable_processors
from libs.hardware.reading import text

IDENTIFY_SECONDS = 20.0
PROGRAM = (sys.executable, "-m", "libs.hardware.cpuinfo_program")


@dataclass(frozen=True, slots=True)
class Identity:
    model: str | None = None
    flags: tuple[str, ...] = ()


def read_cpu(identity: Identity, limits: Limits) -> Cpu:
    import psutil

    threads = usable_processors(_present(), limits)
    cores = psutil.cpu_count(logical=False)
    return Cpu(
        model=identity.model,
        architecture=platform.machine() or None,
        cores=min(cores, threads) if cores else None,
        threads=threads,
        frequency_mhz=_frequency(),
        flags=identity.flags,
    )


def load_ratio(threads: int) -> float:
    """The load average of the last minute over the processors that may be used."""
    import psutil

    return round(psutil.getloadavg()[0] / threads, 3)


def _present() -> int:
    import psutil

    with contextlib.suppress(AttributeError, OSError):  # where there is no affinity, all may be used
        return len(psutil.Process().cpu_affinity() or ()) or 1
    return psutil.cpu_count() or 1


def _frequency() -> float | None:
    """The highest it reaches; where that is not told, the present one."""
    import psutil

    try:
        found = psutil.cpu_freq()
    except (OSError, RuntimeError):
        return None
    return round(found.max or found.current, 1) or None if found else None


class CpuIdentifier:
    """Asks once per boot and keeps the answer in `folder`."""

    def __init__(self, folder: Path, *, program: Sequence[str] = PROGRAM, root: Path = Path("/")) -> None:
        self._folder = folder
        self._program = program
        self._root = root
        self._known: Identity | None = None
        self._asking: asyncio.Task[Identity] | None = None

    async def identity(self, *, seconds: float) -> Identity:
        """Raises `TimedOut` while it is still being found out, `Unavailable` when that failed; both may pass."""
        if self._known is None:
            if self._asking is None:
                self._asking = asyncio.create_task(self._identify(), name="cpu-identity")
            done, _ = await asyncio.wait({self._asking}, timeout=seconds)
            if not done:
                raise TimedOut("the processor is still being identified")
            asked, self._asking = self._asking, None
            self._known = asked.result()
        return self._known

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
            self._asking = None

    async def _identify(self) -> Identity:
        kept = self._kept()
        return kept if kept is not None else await self._run()

    async def _run(self) -> Identity:
        child = await asyncio.create_subprocess_exec(
            *self._program,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(IDENTIFY_SECONDS):
                answer, _ = await child.communicate()
            identity = _parse(answer)
        except TimeoutError:
            raise Unavailable(f"py-cpuinfo does not answer within {IDENTIFY_SECONDS:g} s") from None
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        self._keep(identity)
        return identity

    def _file(self) -> Path:
        """Another kernel start or another processor count is another question."""
        boot = text(self._root / "proc/sys/kernel/random/boot_id") or ""
        key = hashlib.sha256(f"{boot} {platform.machine()} {_present()} {sys.version}".encode()).hexdigest()[:16]
        return self._folder / f"cpu-{key}.json"

    def _kept(self) -> Identity | None:
        try:
            return _parse(self._file().read_bytes())
        except (OSError, MeshError):
            return None

    def _keep(self, identity: Identity) -> None:
        """A disk that cannot be written costs a second at the next start, nothing else."""
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for old in self._folder.glob("cpu-*.json"):
                old.unlink(missing_ok=True)
            fresh = self._file().with_suffix(f".{id(self)}")
            fresh.write_text(json.dumps({"model": identity.model, "flags": identity.flags}))
            fresh.replace(self._file())


def _parse(answer: bytes) -> Identity:
    try:
        found = json.loads(answer)
        model = found["model"]
        return Identity(None if model is None else str(model), tuple(str(flag) for flag in found["flags"]))
    except (ValueError, KeyError, TypeError):
        raise Unavailable("py-cpuinfo gave no answer that can be read") from None
