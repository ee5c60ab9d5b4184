"""A Docker engine of the tests' own, with one small image, and a network that reaches this machine alone."""

import contextlib
import io
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import docker
import pytest

IMAGE = "mesh-test/busybox:1"
ENGINE_IMAGE = "mesh-test/engine:1"
"""Its program is given what `vllm serve` is, and answers on /health; after `fail` it says the next word and fails."""

ENGINE = b"""#!/bin/sh
echo "this is the engine"
[ "$1" = fail ] && { echo "$2"; exit 2; }
while [ $# -gt 0 ]; do
    case $1 in --host) host=$2 ;; --port) port=$2 ;; esac
    shift
done
exec httpd -f -p "$host:$port" -h /www
"""
BUSYBOX = Path("/bin/busybox")
NEEDED = "apt-get install docker.io busybox-static, and run as root"
START_SECONDS = 30.0
BRIDGE = f"mesh{os.getpid()}"
"""At most 15 characters."""


@dataclass(frozen=True)
class DockerProcess:
    """`address` is what a client is given. `gateway`: what this machine is called in its network, None without one."""

    address: str
    client: docker.APIClient
    gateway: str | None

    def names(self) -> list[str]:
        """Of all containers, also those that ended."""
        return [each["Names"][0] for each in self.client.containers(all=True)]


@contextlib.contextmanager
def docker_process() -> Iterator[DockerProcess]:
    """Skips the test, naming what to install, where no engine can be started."""
    if os.getuid() != 0 or not shutil.which("dockerd") or not BUSYBOX.is_file():
        pytest.skip(f"no Docker engine can be started here: {NEEDED}")
    # Not in a test's own folder: the path of a socket must be short.
    folder = Path(tempfile.mkdtemp(prefix="mesh-docker-"))
    gateway = _bridge()
    address = f"unix://{folder}/docker.sock"
    command = [
        # It ends with us, also when we are killed.
        *("setpriv", "--pdeathsig", "TERM", "dockerd", "--host", address),
        *("--data-root", str(folder / "data"), "--exec-root", str(folder / "exec"), "--pidfile", str(folder / "pid")),
        *("--iptables=false", "--ip6tables=false", f"--bridge={BRIDGE if gateway else 'none'}"),
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        client = _connected(process, address, folder / "log")
        client.import_image(_busybox(), repository=IMAGE.split(":")[0], tag=IMAGE.split(":")[1])
        repository, _, tag = ENGINE_IMAGE.partition(":")
        client.import_image(
            _busybox({"bin/engine": ENGINE, "www/health": b"ok"}),
            repository=repository,
            tag=tag,
            changes=['ENTRYPOINT ["/bin/engine"]'],
        )
        yield DockerProcess(address, client, gateway)
        client.close()
    finally:
        process.terminate()
        process.wait(30)
        # A container with this machine's network leaves a mount of it.
        subprocess.run(["umount", folder / "exec" / "netns" / "default"], capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)
        if gateway:
            _ip("link", "del", BRIDGE)


def _bridge() -> str | None:
    """A bridge of our own, and this machine's address on it; None where none can be made."""
    gateway = f"10.213.{os.getpid() % 250}.1"
    made = _ip("link", "add", BRIDGE, "type", "bridge") and _ip("addr", "add", f"{gateway}/24", "dev", BRIDGE)
    return gateway if made and _ip("link", "set", BRIDGE, "up") else None


def _ip(*words: str) -> bool:
    program = shutil.which("ip")
    return program is not None and subprocess.run([program, *words], capture_output=True).returncode == 0


def _connected(process: "subprocess.Popen[bytes]", address: str, log: Path) -> docker.APIClient:
    until = time.monotonic() + START_SECONDS
    while not _listens(address.removeprefix("unix://")):
        if process.poll() is not None or time.monotonic() > until:
            said = log.read_text(errors="replace")[-2000:]
            raise AssertionError(f"dockerd did not start; it said:\n{said}")
        time.sleep(0.02)
    return docker.APIClient(base_url=address, version="auto", timeout=30)


def _listens(path: str) -> bool:
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as door:
        return door.connect_ex(path) == 0


def _busybox(more: Mapping[str, bytes] = {}) -> bytes:
    packed = io.BytesIO()
    names = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True).stdout.split()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add(BUSYBOX, "bin/busybox")
        for name in names:
            if name != "busybox":
                link = tarfile.TarInfo(f"bin/{name}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(link)
        for name, content in more.items():
            file = tarfile.TarInfo(name)
            file.size, file.mode = len(content), 0o755
            tar.addfile(file, io.BytesIO(content))
    return packed.getvalue()
