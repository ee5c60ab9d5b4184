"""A small mesh in a process of its own."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tools.free_ports import free_port


@dataclass
class SmallMesh:
    """`environment` holds its settings; it is not started yet."""

    directory: Path
    environment: dict[str, str]
    ports: dict[str, int]
    process: subprocess.Popen[bytes] | None = None
    arguments: tuple[str, ...] = ()

    @property
    def output(self) -> str:
        return (self.directory / "mesh.out").read_text()

    def url(self, service: str, path: str) -> str:
        return f"http://127.0.0.1:{self.ports[service]}{path}"

    def start(self) -> None:
        with (self.directory / "mesh.out").open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.integration.kit.small_mesh", *self.arguments],
                env=self.environment,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def wait_for_status(self, service: str, status: int, *, timeout: float = 20) -> httpx.Response:
        """Ask `/readyz` until it answers with this status."""
        until = time.monotonic() + timeout
        while True:
            assert self.process is not None
            assert self.process.poll() is None, f"the mesh ended:\n{self.output}"
            assert time.monotonic() < until, f"/readyz of {service} was never {status}:\n{self.output}"
            with contextlib.suppress(httpx.TransportError):
                answer = httpx.get(self.url(service, "/readyz"), timeout=5)
                if answer.status_code == status:
                    return answer
            time.sleep(0.02)

    def wait_ready(self) -> None:
        for service in self.ports:
            self.wait_for_status(service, 200)

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, timeout: float = 20) -> int:
        assert self.process is not None
        return self.process.wait(timeout)


@pytest.fixture
def small_mesh(tmp_path: Path) -> Iterator[SmallMesh]:
    ports = {"echo": free_port(), "asker": free_port()}
    inherited = {name: text for name, text in os.environ.items() if name in ("PATH", "HOME", "LANG")}
    environment = {
        **inherited,
        "MESH_DATA_DIR": str(tmp_path / "data"),
        "LOG_FORMAT": "json",
        **{f"{service.upper()}_PORT": str(port) for service, port in ports.items()},
    }
    mesh = SmallMesh(tmp_path, environment, ports)
    yield mesh
    if mesh.process is not None and mesh.process.poll() is None:
        mesh.process.kill()
        mesh.process.wait()
