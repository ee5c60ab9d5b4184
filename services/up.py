"""`make up`: NATS, all seven services and the main job, in one process, until Ctrl-C.

A main job that does not come through is said, and takes nothing down. `--demo` ends after it, with exit code 0 when
everything came out right. `--background` returns when the mesh
is up; `--down` ends that mesh; `--reset` forgets all it kept.
"""

import argparse
import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import psutil
from rich.console import Console

from libs.common.bus.bus import Bus
from libs.common.bus.nats.transport import connect
from libs.common.bus.observer import SilentObserver
from libs.common.clock import SystemClock
from libs.common.errors import MeshError, WrongSetting
from libs.common.kit import identity, logs, runner
from libs.common.kit.settings import PlatformSettings, load
from services.main_job import Mesh, main_job
from services.node_agent.hosted_folder import DiskHostedFolders
from services.node_agent.process_posix import rest_of_session
from services.suite import SUITE, addresses

UP = "The mesh is up."
READY_SECONDS = 15.0
STOP_SECONDS = 40.0
_CHILDREN = {"nats-server": "nats-server", "services.node_agent.llama_server": "engine"}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code: 0 all well, 1 something failed, 2 a setting is wrong."""
    options = _parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        settings = load(PlatformSettings)
        settings.mesh_data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        if options.down:
            return _down(settings.mesh_data_dir, console, reset=options.reset)
        if options.background:
            return _background(settings.mesh_data_dir, console)
        with _only_one(settings.mesh_data_dir):
            return runner.run_on_uvloop(_up(settings, console, demo=options.demo))
    except WrongSetting as error:
        console.print(error.message, style="red", markup=False, highlight=False)
        return 2
    except MeshError as error:
        console.print(error.message, style="red", markup=False, highlight=False)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.up", description=__doc__)
    parser.add_argument("--demo", action="store_true", help="stop after the main job; the exit code says how it went")
    parser.add_argument("--background", action="store_true", help="return when the mesh is up and leave it running")
    parser.add_argument("--down", action="store_true", help="stop the mesh that runs in the background")
    parser.add_argument("--reset", action="store_true", help="with --down: delete everything the mesh has kept")
    return parser


async def _up(settings: PlatformSettings, console: Console, *, demo: bool) -> int:
    started = time.monotonic()
    stop, ready, good = asyncio.Event(), asyncio.Event(), False
    logs.configure(settings.log_format, settings.log_level, file=settings.mesh_data_dir / "mesh.log")
    console.print(f"Starting NATS and {len(SUITE)} services; their log is {settings.mesh_data_dir / 'mesh.log'} …")

    async def show(nats_url: str) -> None:
        nonlocal good
        if await _ready(ready, settings, console):
            console.print(f"{len(SUITE)} services are ready after {time.monotonic() - started:.1f} s.", highlight=False)
        good = await _self_check(settings, nats_url, console)
        if demo:
            stop.set()
            return
        console.print(_where(settings), highlight=False)
        console.print(f"{UP} Ctrl-C stops it.", highlight=False)

    with runner.stopping_on_signals(stop):
        await runner.run(SUITE, settings, stop=stop, ready=ready, alongside=show)
    console.print("Stopped.")
    return 0 if good or not demo else 1


async def _ready(ready: asyncio.Event, settings: PlatformSettings, console: Console) -> bool:
    """Whether all became ready in time. If not, what keeps them from it is said."""
    try:
        async with asyncio.timeout(READY_SECONDS):
            await ready.wait()
        return True
    except TimeoutError:
        async with httpx.AsyncClient(trust_env=False, timeout=5) as http:
            for service, url in addresses(settings.http_host).items():
                for check, problem in (await _checks(http, url)).items():
                    if problem != "ok":
                        console.print(f"{service} is not ready: {check}: {problem}", style="red", markup=False)
        return False


async def _checks(http: httpx.AsyncClient, url: str) -> dict[str, str]:
    try:
        answer = await http.get(f"{url}/readyz")
    except httpx.HTTPError as error:
        return {url: str(error) or type(error).__name__}
    checks: dict[str, str] = answer.json()["checks"] if answer.status_code != httpx.codes.OK else {}
    return checks


async def _self_check(settings: PlatformSettings, nats_url: str, console: Console) -> bool:
    clock = SystemClock()
    token = settings.api_token.get_secret_value() if settings.api_token else None
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with (
        connect(nats_url, name="main_job", credentials=settings.nats_credentials) as transport,
        httpx.AsyncClient(headers=headers, timeout=30) as http,
    ):
        mesh = Mesh(
            http=http,
            bus=Bus(transport, name="main_job", observer=SilentObserver(), clock=clock),
            clock=clock,
            node_id=identity.node_id(settings),
            urls=addresses(settings.http_host),
        )
        try:
            report = await main_job(mesh, console)
        except (MeshError, httpx.HTTPError) as error:
            told = error.message if isinstance(error, MeshError) else f"{type(error).__name__}: {error}"
            console.print(f"The main job did not come through: {told}", style="red", markup=False, highlight=False)
            return False
    return report is None or report.good


def _where(settings: PlatformSettings) -> str:
    lines = [f"  {name:<18} {url}/docs" for name, url in addresses(settings.http_host).items()]
    return "\n".join(["", "Each service has its API at /docs, and /readyz and /metrics beside it:", *lines, ""])


def _background(data_dir: Path, console: Console) -> int:
    """Start ourselves again in a session of our own, and repeat what that one says until it is up."""
    _refuse_second(data_dir)
    said = data_dir / "up.out"
    with said.open("wb") as out:
        child = subprocess.Popen(
            [sys.executable, "-m", "services.up"],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    with said.open() as lines:
        while True:
            line = lines.readline()
            if line.startswith(UP):
                console.print(f"{UP} It runs in the background as process {child.pid}; `make down` stops it.")
                return 0
            if line:
                console.print(line.rstrip("\n"), markup=False, highlight=False)
            elif child.poll() is not None:
                return child.returncode or 1
            else:
                time.sleep(0.05)


def _down(data_dir: Path, console: Console, *, reset: bool) -> int:
    pid = _running(data_dir)
    if pid is not None and not _stopped(pid, data_dir):
        console.print(f"Process {pid} did not stop in {STOP_SECONDS:.0f} s; its log says why.", style="red")
        return 1
    hosted = _hosted_left_behind(data_dir)
    engines = [process for processes in hosted.values() for process in processes]
    children = [process for process in _left_behind(data_dir) if process not in engines]
    left = [*children, *engines]
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    for process in psutil.wait_procs(left, timeout=STOP_SECONDS)[1]:
        process.kill()
    if left:
        names = ", ".join([*(f"{_program(process)} ({process.pid})" for process in children), *hosted])
        console.print(f"Ended what a killed mesh left behind: {names}.", highlight=False)
    console.print("No mesh is running here." if pid is None and not left else "Stopped.")
    if reset:
        shutil.rmtree(data_dir)
        console.print(f"Everything under {data_dir} is forgotten.")
    return 0


def _stopped(pid: int, data_dir: Path) -> bool:
    os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + STOP_SECONDS
    while _running(data_dir) is not None:
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def _left_behind(data_dir: Path) -> list[psutil.Process]:
    """The nats-server and the engine of a mesh that was killed: they outlive it, so that nothing in hand is lost."""
    place = f"{data_dir.resolve()}{os.sep}"
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(part.startswith(place) for part in process.info["cmdline"] or ()) and _program(process)
    ]


def _hosted_left_behind(data_dir: Path) -> dict[str, list[psutil.Process]]:
    """What still runs of the engines that were deployed here, by the names of their instances."""
    found = {}
    for files in DiskHostedFolders(data_dir / "node_agent").kept():
        begun = files.begun()
        if begun is not None and begun.pid is not None and begun.started is not None and files.ended() is None:
            processes = rest_of_session(begun.pid, begun.started)
            if processes:
                found[f"{begun.asked.program} of {begun.asked.instance} ({begun.pid})"] = processes
    return found


def _program(process: psutil.Process) -> str:
    """The name of the child program this process is; empty when it is none of ours."""
    command = getattr(process, "info", {}).get("cmdline") or [""]
    words = [Path(command[0]).name, *command[1:3]]
    return next((name for word, name in _CHILDREN.items() if word in words), "")


def _refuse_second(data_dir: Path) -> None:
    pid = _running(data_dir)
    if pid is not None:
        raise WrongSetting(
            f"A mesh already runs here, as process {pid}; `make down` stops it. "
            "For a second one set MESH_DATA_DIR and the ports."
        )


@contextlib.contextmanager
def _only_one(data_dir: Path) -> Iterator[None]:
    """Hold the directory's lock for as long as we live; the kernel lets go of it however we end."""
    _refuse_second(data_dir)
    with (data_dir / "up.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _running(data_dir: Path) -> int | None:
    """The process that holds the directory's lock."""
    try:
        with (data_dir / "up.lock").open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(lock.read() or 0)
            return None
    except FileNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
