"""Containers of a Docker engine, through its SDK, which blocks: every call is made in a thread of our own here."""

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

import docker
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.types import CancellableStream, DeviceRequest, LogConfig, Ulimit

from libs.common.errors import Unavailable
from services.node_agent.containers import ContainerEnd, ContainerFound, ContainerPlan
from services.node_agent.model import JobFailed

T = TypeVar("T")

NODE_LABEL = "mesh.node_id"
WORK_FOLDER = "/work"
NOBODY = "65534:65534"
CALL_SECONDS = 15.0
WAIT_SECONDS = 10.0
TELL_SECONDS = 0.25
HEARSAY_SECONDS = 1.0
POLL_SECONDS = 0.05
KILLED = 137
NO_DRIVER = "could not select device driver"
MOST_PROCESSES = 256
TEMPORARY_BYTES = 64 * 1024 * 1024
SHOWN_BYTES = 32 * 1024
WAITING_BYTES = 64 * 1024
# Docker keeps this much of what a container writes, twice: a job cannot fill the disk with its output.
LOG_FILE_BYTES = 1024 * 1024


class _Heard:
    """What a container wrote and nobody was told yet: filled in a thread, emptied by the event loop, bounded."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bytes = bytearray()

    def add(self, piece: bytes) -> None:
        with self._lock:
            self._bytes += piece
            del self._bytes[:-WAITING_BYTES]

    def take(self) -> str:
        with self._lock:
            text, self._bytes = self._bytes.decode(errors="replace"), bytearray()
        return text


class DockerContainers:
    """See `Containers`. `slots` containers run at once; `address` is the engine's socket."""

    def __init__(self, address: str, *, node_id: str, slots: int) -> None:
        self._address = address
        self._node_id = node_id
        self._connected: docker.APIClient | None = None
        self._connecting = threading.Lock()
        # Each container may take three: to wait for its end, to listen to its output, to stop it.
        self._threads = ThreadPoolExecutor(max_workers=3 * slots + 4, thread_name_prefix="docker")
        self._problem: str | None = "it was not asked yet"

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._connected is not None:
            self._connected.close()

    def problem(self) -> str | None:
        return self._problem

    async def look(self) -> None:
        try:
            await self._do(self._ping)
        except Unavailable as error:
            self._problem = error.message
            raise
        self._problem = None

    async def start(self, plan: ContainerPlan) -> str:
        try:
            return await self._in_thread(partial(_start, plan=plan, labels={**plan.labels, NODE_LABEL: self._node_id}))
        except ImageNotFound as error:
            raise JobFailed("image_missing", f"`image` {plan.image} is not on this node", retryable=True) from error
        except APIError as error:
            reason = str(error.explanation or error)[:1000]
            if plan.gpu_uuids and NO_DRIVER in reason:
                reason = f"Docker cannot give it GPUs: install the NVIDIA Container Toolkit on this node ({reason})"
                raise JobFailed("container_refused", reason, retryable=True) from error
            raise JobFailed("container_refused", f"Docker did not start it: {reason}", retryable=True) from error

    async def ours(self) -> list[ContainerFound]:
        labels = {"label": f"{NODE_LABEL}={self._node_id}"}
        found = await self._do(lambda client: client.containers(all=True, filters=labels))
        return [
            ContainerFound(
                name=str(each["Names"][0]).removeprefix("/"),
                container_id=each["Id"],
                labels=each["Labels"],
                started=each["State"] != "created",
            )
            for each in found
        ]

    async def ended(self, name: str, tell: Callable[[str], None]) -> ContainerEnd | None:
        heard = _Heard()
        listening = await self._listening(name, heard)
        try:
            while not await self._ended_soon(name, heard, tell):
                pass
            return await self._do(partial(_end_of, name=name))
        except NotFound:
            return None
        finally:
            if listening is not None:
                listening.close()
            if text := heard.take():
                tell(text)

    async def stop(self, name: str, grace_seconds: float) -> None:
        with contextlib.suppress(NotFound):
            await self._do(lambda client: client.stop(name, timeout=round(grace_seconds)))

    async def remove(self, name: str) -> None:
        with contextlib.suppress(NotFound):
            await self._do(lambda client: client.remove_container(name, force=True, v=True))

    async def _ended_soon(self, name: str, heard: _Heard, tell: Callable[[str], None]) -> bool:
        """Wait for its end for a while, and tell what it writes meanwhile."""
        waiting = asyncio.ensure_future(self._do(partial(_wait, name=name)))
        while not waiting.done():
            await asyncio.wait([waiting], timeout=TELL_SECONDS)
            if text := heard.take():
                tell(text)
        return await waiting

    async def _listening(self, name: str, heard: _Heard) -> CancellableStream | None:
        """Its output from the beginning, read in a thread until it ends or is closed."""
        try:
            stream = await self._do(lambda client: client.logs(name, stream=True, follow=True))
        except NotFound:
            return None
        asyncio.get_running_loop().run_in_executor(self._threads, _listen, stream, heard)
        return stream

    async def _do(self, call: Callable[[docker.APIClient], T]) -> T:
        """In a thread. Raises `NotFound`, and `Unavailable` when the engine does not do it or does not answer."""
        try:
            return await self._in_thread(call)
        except NotFound:
            raise
        except APIError as error:
            raise Unavailable(f"Docker refused: {error.explanation or error}") from error

    async def _in_thread(self, call: Callable[[docker.APIClient], T]) -> T:
        """In a thread. Raises `APIError`, and `Unavailable` when the engine does not answer."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: call(self._client()))
        except APIError:
            raise
        except (DockerException, OSError) as error:
            raise Unavailable(f"Docker does not answer at {self._address}: {_reason(error)}") from error

    def _ping(self, client: docker.APIClient) -> None:
        self._knock()
        client.ping()

    def _knock(self) -> None:
        """Raises `OSError` when nobody listens. The SDK would leave its socket open then."""
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as door:
            door.settimeout(CALL_SECONDS)
            door.connect(self._address.removeprefix("unix://"))

    def _client(self) -> docker.APIClient:
        """Made when it is first needed: making it asks the engine for its version."""
        with self._connecting:
            if self._connected is None:
                self._knock()
                self._connected = docker.APIClient(base_url=self._address, version="auto", timeout=CALL_SECONDS)
            return self._connected


def _start(client: docker.APIClient, *, plan: ContainerPlan, labels: Mapping[str, str]) -> str:
    made = client.create_container(
        plan.image,
        command=list(plan.command) if plan.command is not None else None,
        name=plan.name,
        user=f"{os.getuid()}:{os.getgid()}" if os.getuid() else NOBODY,
        working_dir=WORK_FOLDER,
        environment={"HOME": WORK_FOLDER, **plan.environment},
        labels=dict(labels),
        network_disabled=not plan.network,
        stop_signal="SIGTERM",
        host_config=client.create_host_config(**_confinement(plan)),
    )
    client.start(made["Id"])
    return str(made["Id"])


def _confinement(plan: ContainerPlan) -> dict[str, Any]:
    """What keeps a container from doing more than its job."""
    memory, most_file = plan.memory_mb * 1024 * 1024, plan.file_mb * 1024 * 1024
    return {
        "network_mode": "bridge" if plan.network else "none",
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "ipc_mode": "private",
        "init": True,
        "pids_limit": MOST_PROCESSES,
        "nano_cpus": round(plan.cpus * 1e9),
        "mem_limit": memory,
        "memswap_limit": memory,
        # When the machine itself runs out of memory, a job goes before what the machine is there for.
        "oom_score_adj": 500,
        "ulimits": [Ulimit(name="core", soft=0, hard=0), Ulimit(name="fsize", soft=most_file, hard=most_file)],
        "tmpfs": {"/tmp": f"size={TEMPORARY_BYTES},nosuid,nodev"},  # inside the container
        "binds": [f"{plan.work_folder}:{WORK_FOLDER}:rw,Z"],
        "log_config": LogConfig(type="json-file", config={"max-size": str(LOG_FILE_BYTES), "max-file": "2"}),
        "device_requests": [DeviceRequest(device_ids=list(plan.gpu_uuids), capabilities=[["gpu"]])]
        if plan.gpu_uuids
        else None,
    }


def _wait(client: docker.APIClient, *, name: str) -> bool:
    """Whether it has ended; after a while at the latest, so that no thread waits for ever."""
    try:
        client.wait(name, timeout=WAIT_SECONDS)
    except OSError as error:
        # Depending on where the time runs out, it is called one thing or another.
        if "timed out" not in str(error):
            raise
        return False
    return True


def _listen(stream: CancellableStream, heard: _Heard) -> None:
    try:
        for piece in stream:
            heard.add(piece)
    except (DockerException, OSError, ValueError, AttributeError):
        # It was closed, or the engine is away: who waits for the container's end will see.
        return


def _end_of(client: docker.APIClient, *, name: str) -> ContainerEnd:
    state = _state_at_the_end(client, name)
    stdout = client.logs(name, stdout=True, stderr=False)
    stderr = client.logs(name, stdout=False, stderr=True)
    return ContainerEnd(
        exit_code=state["ExitCode"],
        oom_killed=bool(state["OOMKilled"]),
        seconds=_seconds_between(state["StartedAt"], state["FinishedAt"]),
        stdout=stdout[-SHOWN_BYTES:].decode(errors="replace"),
        stderr=stderr[-SHOWN_BYTES:].decode(errors="replace"),
        output_cut=max(len(stdout), len(stderr)) > SHOWN_BYTES,
    )


def _state_at_the_end(client: docker.APIClient, name: str) -> Mapping[str, Any]:
    """Docker may hear that something was killed for its memory only after it heard that the container ended."""
    until = time.monotonic() + HEARSAY_SECONDS
    while True:
        state: Mapping[str, Any] = client.inspect_container(name)["State"]
        if state["ExitCode"] != KILLED or state["OOMKilled"] or time.monotonic() > until:
            return state
        time.sleep(POLL_SECONDS)


def _seconds_between(started: str, ended: str) -> float:
    """Docker writes nanoseconds, of which Python reads six places."""
    first, last = (datetime.fromisoformat(f"{moment[:19]}+00:00") for moment in (started, ended))
    fractions = [float(f"0.{moment[20:].rstrip('Z') or 0}") for moment in (started, ended)]
    return max(0.0, round((last - first).total_seconds() + fractions[1] - fractions[0], 3))


def _reason(error: BaseException) -> str:
    """The innermost cause: what is around it only says that there is one."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return str(error)[:300] or type(error).__name__
