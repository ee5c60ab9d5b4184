"""A real nats-server for tests, that can be killed and started again on the same port with the same data."""

import asyncio
import contextlib
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from libs.common.bus.nats.server import server_binary
from tools.free_ports import free_port

JETSTREAM = """
jetstream {{ store_dir: "{directory}/jetstream", sync_interval: {sync_interval}, max_buffered_msgs: 1000000,
  max_buffered_size: 512MB }}
feature_flags {{ js_ack_fc_v2: {ack_v2} }}
"""


class NatsProcess:
    """`extra` is configuration text (accounts, limits, operator mode, a name …) added to the plain one."""

    def __init__(
        self,
        directory: Path,
        *,
        extra: str = "",
        sync_interval: str = "always",
        ack_v2: bool = False,
        jetstream: bool = True,
    ) -> None:
        self.directory = directory
        self.port = free_port()
        self._extra = extra
        self._name = "" if "server_name" in extra else 'server_name: "test"\n'
        self._jetstream = (
            JETSTREAM.format(directory=directory, sync_interval=sync_interval, ack_v2=str(ack_v2).lower())
            if jetstream
            else ""
        )
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> "NatsProcess":
        configuration = self.directory / "nats.conf"
        configuration.write_text(
            f'{self._name}listen: "127.0.0.1:{self.port}"\nmax_payload: 1MB\n{self._jetstream}\n{self._extra}\n'
        )
        with (self.directory / "nats.log").open("ab") as out:
            self._process = subprocess.Popen([server_binary(), "-c", str(configuration)], stdout=out, stderr=out)
        self._wait_until_it_accepts()
        return self

    async def restart_after_kill(self) -> None:
        """SIGKILL, then start; returns as soon as the port accepts."""
        self.kill()
        await asyncio.to_thread(self.start)

    def kill(self) -> None:
        """SIGKILL: nothing is flushed, nobody is told."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=10)

    def _wait_until_it_accepts(self) -> None:
        until = time.monotonic() + 10
        while time.monotonic() < until:
            assert self._process is not None
            if self._process.poll() is not None:
                raise RuntimeError((self.directory / "nats.log").read_text())
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 0.5) as connection:
                if connection.recv(4).startswith(b"INFO"):
                    return
            time.sleep(0.01)
        raise RuntimeError("nats-server did not accept connections in time")


@contextlib.contextmanager
def nats_process(**options: object) -> Iterator[NatsProcess]:
    """A running server with a directory of its own, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="nats-") as directory:
        server = NatsProcess(Path(directory), **options)  # type: ignore[arg-type]
        server.start()
        try:
            yield server
        finally:
            server.kill()
