"""A real PostgreSQL for tests: a cluster of its own on loopback, that can be stopped and started again."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tools.free_ports import free_port

SETTINGS = ("fsync=off", "unix_socket_directories=", "listen_addresses=127.0.0.1", "max_connections=40", "jit=off")


def postgres_programs() -> Path | None:
    """Where `initdb`, `postgres` and `psql` are; the newest. Debian keeps them away from `PATH`."""
    found = [folder for folder in Path("/usr/lib/postgresql").glob("*/bin") if (folder / "initdb").exists()]
    if found:
        return max(found, key=lambda folder: float(folder.parent.name))
    initdb = shutil.which("initdb")
    return Path(initdb).parent if initdb else None


def needed_postgres_programs() -> Path:
    """Skips the test, naming what to install, where there is none: `make test` runs on a machine without it."""
    programs = postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    return programs


class PostgresProcess:
    def __init__(self, programs: Path, directory: Path, settings: Sequence[str] = SETTINGS) -> None:
        self._settings = settings
        self.port = free_port()
        self._programs = programs
        self._directory = directory
        self._user = _unprivileged()
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, database: str = "postgres", user: str = "postgres") -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def create(self) -> "PostgresProcess":
        if self._user is not None:
            os.chown(self._directory, *self._user)
        command = [self._programs / "initdb", "-D", self._data, "-A", "trust", "-U", "postgres", "-E", "UTF8", "-N"]
        subprocess.run([*command, "--locale=C.UTF-8"], check=True, capture_output=True, **self._as_user())
        return self.start()

    def start(self) -> "PostgresProcess":
        options = [word for setting in self._settings for word in ("-c", setting)]
        command = [self._programs / "postgres", "-D", self._data, "-p", str(self.port), *options]
        with (self._directory.parent / f"{self._directory.name}.log").open("ab") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=out, **self._as_user())
        self._wait_until_it_answers()
        return self

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT ends every connection and writes a checkpoint; SIGQUIT does neither."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(timeout=30)

    def sql(self, text: str, database: str = "postgres") -> str:
        """As the superuser; what it answers, one row to a line."""
        command = [self._programs / "psql", "-XqAt", "-v", "ON_ERROR_STOP=1", self.url(database)]
        done = subprocess.run(command, input=text, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def _data(self) -> Path:
        return self._directory / "data"

    def _as_user(self) -> dict[str, object]:
        if self._user is None:
            return {"cwd": self._directory}
        return {"cwd": self._directory, "user": self._user[0], "group": self._user[1], "extra_groups": []}

    def _wait_until_it_answers(self) -> None:
        until = time.monotonic() + 20
        asking = [self._programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        while time.monotonic() < until:
            assert self._process is not None
            assert self._process.poll() is None, "PostgreSQL ended"
            if subprocess.run(asking, check=False).returncode == 0:
                return
            time.sleep(0.02)
        raise RuntimeError("PostgreSQL did not answer in time")


def _unprivileged() -> tuple[int, int] | None:
    """PostgreSQL refuses to run as root; who is not root runs it as himself."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name: (entry.pw_uid, entry.pw_gid) for entry in pwd.getpwall()}
    return known.get("postgres") or known["nobody"]


@contextlib.contextmanager
def postgres_process(programs: Path, settings: Sequence[str] = SETTINGS) -> Iterator[PostgresProcess]:
    """A running server with a directory of its own, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="postgres-") as directory:
        Path(directory).chmod(0o755)
        inner = Path(directory) / "cluster"
        inner.mkdir()
        server = PostgresProcess(programs, inner, settings)
        try:
            yield server.create()
        finally:
            server.stop(signal.SIGQUIT)
