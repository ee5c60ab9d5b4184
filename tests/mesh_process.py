"""A whole mesh as a user starts it: a process of its own, on free ports, with a data directory of its own."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import psutil

from tools.free_ports import free_ports

SERVICES = (
    "node_registry",
    "resource_detector",
    "vllm_orchestrator",
    "work_marshaling",
    "gpu_orchestrator",
    "benchmark_runner",
    "node_agent",
)


class MeshProcess:
    """`environment` adds settings. `start` may be called again after `kill` or `stop`: same ports, same data."""

    def __init__(self, directory: Path, **environment: str) -> None:
        self.directory = directory
        free = free_ports(len(SERVICES) + 1)
        self.nats_port = free.pop()
        self.ports = dict(zip(SERVICES, free, strict=True))
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("NATS_", "MESH_", "COV_"))},
            "MESH_DATA_DIR": str(directory),
            "GPU_ORCHESTRATOR_LOCK": str(directory.parent / f"{directory.name}.lock"),
            "NATS_PORT": str(self.nats_port),
            "PYTHONUNBUFFERED": "1",
            **{f"{service.upper()}_PORT": str(port) for service, port in self.ports.items()},
            **environment,
        }
        self.process: subprocess.Popen[str] | None = None
        self._known: list[psutil.Process] = []

    def url(self, service: str) -> str:
        return f"http://127.0.0.1:{self.ports[service]}"

    @property
    def nats_url(self) -> str:
        return f"nats://127.0.0.1:{self.nats_port}"

    @property
    def output(self) -> str:
        return (self.directory.parent / f"{self.directory.name}.out").read_text()

    def start(self, arguments: Sequence[str] = ("-m", "services")) -> "MeshProcess":
        with (self.directory.parent / f"{self.directory.name}.out").open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, *arguments], env=self.environment, stdout=out, stderr=subprocess.STDOUT, text=True
            )
        return self

    def run(self, arguments: Sequence[str], *, timeout: float) -> int:
        """Start and wait for the end. Returns the exit code."""
        self.start(arguments)
        return self.wait(timeout)

    def wait(self, timeout: float) -> int:
        assert self.process is not None
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the mesh did not end in {timeout:.0f} s; it said:\n{self.output}") from None

    def wait_ready(self, services: Sequence[str] = SERVICES, *, timeout: float = 60) -> "MeshProcess":
        until = time.monotonic() + timeout
        waiting = list(services)
        while waiting:
            assert time.monotonic() < until, f"not ready: {waiting}; it said:\n{self.output}"
            assert self.process is not None
            assert self.process.poll() is None, f"the mesh ended; it said:\n{self.output}"
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url(waiting[0])}/readyz", timeout=5).status_code == httpx.codes.OK:
                    waiting.pop(0)
                    continue
            time.sleep(0.05)
        return self

    def wait_until_listed(self, *, timeout: float = 30) -> None:
        """Until the registry knows this machine: it is told after everything is ready."""
        until = time.monotonic() + timeout
        while not httpx.get(f"{self.url('node_registry')}/api/v1/nodes").json()["nodes"]:
            assert time.monotonic() < until, f"not listed; it said:\n{self.output}"
            time.sleep(0.05)

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.remember_children()
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL of the process alone, as the kernel's memory killer would; its children live on."""
        self.signal(signal.SIGKILL)
        self.wait(10)

    def stop(self, timeout: float = 30) -> int:
        self.signal(signal.SIGINT)
        return self.wait(timeout)

    def remember_children(self) -> None:
        assert self.process is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            self._known.extend(psutil.Process(self.process.pid).children(recursive=True))

    def left_behind(self) -> list[psutil.Process]:
        """Processes of this mesh that still run."""
        marker = str(self.directory)
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                ours = process in self._known or any(marker in part for part in process.cmdline())
                if ours and process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def clean_up(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.remember_children()
            self.process.kill()
            self.process.wait()
        for process in self.left_behind():
            with contextlib.suppress(psutil.Error):
                process.kill()


@contextlib.contextmanager
def mesh_process(directory: Path, **environment: str) -> Iterator[MeshProcess]:
    """A mesh that is gone afterwards, whatever happened. It is not started yet."""
    directory.mkdir(parents=True, exist_ok=True)
    mesh = MeshProcess(directory, **environment)
    try:
        yield mesh
    finally:
        mesh.clean_up()
