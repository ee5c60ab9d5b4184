"""The processes of a small mesh, each of its own, so that each can be killed alone."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import httpx

from tests.faults.nursery import PIDS
from tests.nats_process import NatsProcess
from tests.postgres_process import PostgresProcess, postgres_process, postgres_programs
from tools.free_ports import free_port

S = TypeVar("S", bound="Service")

PLACE = "tests.faults.jobs"
SLOTS = 60
READY_SECONDS = 40.0

QUEUE = {
    "WORK_RETRY_DELAY": "0.5",
    "WORK_LEASE_SECONDS": "10",
    "WORK_UPKEEP_SECONDS": "1",
    "WORK_CHECKPOINT_RECORDS": "150",
}

ARCHIVED = (
    "select work_id, status, to_char(ended_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US') from work_items"
)


class Service:
    """One process that is started, killed and started again on the same port with the same data."""

    def __init__(self, module: str, folder: Path, settings: Mapping[str, str], port_variable: str) -> None:
        self.module = module
        self.folder = folder
        self.port = free_port()
        self.pids: list[int] = []
        self.process: subprocess.Popen[bytes] | None = None
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("NATS_", "MESH_", "WORK_"))}
        self.environment = {
            **kept,
            "MESH_DATA_DIR": str(folder),
            "LOG_FORMAT": "json",
            port_variable: str(self.port),
            **settings,
        }
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", self.module]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def output(self) -> str:
        return (self.folder / "output.log").read_text()

    @property
    def pid(self) -> int:
        return self.pids[-1] if self.pids else 0

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        if self.alive():
            return
        with (self.folder / "output.log").open("ab") as out:
            self.process = subprocess.Popen(self.command, env=self.environment, stdout=out, stderr=out)
        self.pids.append(self.process.pid)

    def send(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.wait()

    def stop(self) -> int:
        self.send(signal.SIGTERM)
        return self.wait()

    def wait(self, seconds: float = 30) -> int:
        assert self.process is not None
        return self.process.wait(seconds)

    def ready(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/readyz", timeout=5, trust_env=False).status_code == httpx.codes.OK
        return False

    def leads(self) -> bool:
        """Of a marshaler."""
        with contextlib.suppress(httpx.TransportError):
            told = httpx.get(f"{self.url}/readyz", timeout=1, trust_env=False).json()
            return bool(told["checks"].get("leader") == "ok")
        return False


class Nursling(Service):
    """An agent that is forked by a nursery, and again as soon as it died."""

    @property
    def pids(self) -> list[int]:
        listed = self.folder / PIDS
        return [int(line) for line in listed.read_text().split()] if listed.exists() else []

    @pids.setter
    def pids(self, pids: list[int]) -> None:
        """They are in the nursery's list."""

    def alive(self) -> bool:
        return True

    def start(self) -> None:
        """The nursery does."""

    def send(self, number: signal.Signals) -> None:
        """It ends with the nursery."""

    def wait(self, seconds: float = 30) -> int:
        return 0


class Nursery(Service):
    def __init__(self, folder: Path, agents: Sequence[Nursling]) -> None:
        super().__init__("tests.faults.nursery", folder, {}, "UNUSED_PORT")
        self._list = folder / "agents.json"
        self._list.write_text(json.dumps([agent.environment for agent in agents]))

    @property
    def command(self) -> list[str]:
        return [*super().command, str(self._list)]

    def ready(self) -> bool:
        return self.alive()


def on_small_disk(store: Path) -> NatsProcess:
    """A server that believes in more room than there is: otherwise it would not even make the streams."""
    return NatsProcess(
        store,
        jetstream=False,
        extra=f'jetstream {{ store_dir: "{store}/jetstream", sync_interval: always, max_file_store: 100GB }}\n'
        "feature_flags { js_ack_fc_v2: false }",
    )


class Stage:
    """A nats-server on disk, one marshaling, agents and a node registry. With `forked`, agents live in a nursery."""

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, str],
        *,
        agents: int = 3,
        slots: int = SLOTS,
        forked: bool = False,
        store: Path | None = None,
        archive: PostgresProcess | None = None,
    ) -> None:
        self.folder = folder
        self.archive = archive
        folder.mkdir(parents=True, exist_ok=True)
        self.nats = NatsProcess(folder) if store is None else on_small_disk(store)
        self.lines = folder / "lines.txt"
        where = {} if archive is None else {"ARCHIVE_URL": archive.url()}
        self.settings = {**QUEUE, **settings, **where, "NATS_URL": self.nats.url}
        self.marshaling = self.another_marshaling("marshaling")
        self.registry = Service("services.node_registry", folder / "registry", self.settings, "NODE_REGISTRY_PORT")
        self.others: list[Service] = []
        self.agents: list[Service] = []
        self.nurseries: list[Service] = []
        self.mortal: set[int] = set()
        if forked:
            nurslings = [self._agent(number, slots, Nursling) for number in range(1, agents + 1)]
            self.agents.extend(nurslings)
            self.nurseries.append(Nursery(folder / "nursery", nurslings))
        else:
            self.agents.extend(self._agent(number, slots, Service) for number in range(1, agents + 1))

    def _agent(self, number: int, slots: int, kind: type[S]) -> S:
        own = {
            **self.settings,
            "NODE_ID": f"node-{number}",
            "ENGINE": "none",
            "AGENT_FUNCTIONS": f"note={PLACE}:note,poison={PLACE}:poison",
            "AGENT_FUNCTION_SLOTS": str(slots),
        }
        return kind("services.node_agent", self.folder / f"node-{number}", own, "NODE_AGENT_PORT")

    def another_marshaling(self, name: str, **more: str) -> Service:
        return Service(
            "services.work_marshaling", self.folder / name, {**self.settings, **more}, "WORK_MARSHALING_PORT"
        )

    @property
    def marshalings(self) -> list[Service]:
        return [self.marshaling, *self.others]

    @property
    def services(self) -> list[Service]:
        return [*self.marshalings, self.registry, *self.nurseries, *self.agents]

    def doors(self) -> list[str]:
        """Where work may be submitted."""
        return [each.url for each in self.marshalings]

    def agent_pids(self) -> set[int]:
        return {agent.pid for agent in self.agents if agent.alive()}

    def died(self) -> set[int]:
        """The agents' processes that ended before their time, or were given up."""
        earlier = (agent.pids[:-1] for agent in self.agents if isinstance(agent, Nursling))
        return self.mortal.union(*earlier)

    def start(self) -> None:
        self.nats.start()
        for service in self.services:
            service.start()
        self.wait_ready()

    def wait_ready(self) -> None:
        until = time.monotonic() + READY_SECONDS
        for service in self.services:
            while service.alive() and not service.ready():
                if time.monotonic() > until:
                    raise AssertionError(f"{service.module} was not ready; it said:\n{service.output[-4000:]}")
                time.sleep(0.1)

    def kill_agent(self, agent: Service) -> None:
        self.mortal.add(agent.pid)
        agent.kill()

    def fence(self, agent: Service) -> None:
        """Remember that this process is given up: its jobs may be run elsewhere as well."""
        self.mortal.add(agent.pid)

    def kill_all(self) -> None:
        """At one instant: every process is told before any is waited for."""
        self.mortal |= self.agent_pids()
        for service in self.services:
            service.send(signal.SIGKILL)
        self.nats.kill()
        for service in self.services:
            service.wait()

    def whole(self) -> None:
        """Start whatever is not there."""
        for service in self.services:
            service.start()

    def archive_rows(self, least: int, seconds: float) -> list[tuple[str, str, str]]:
        """Id, status and end of all work in the archive, once so many rows are there, or after so long."""
        assert self.archive is not None
        until = time.monotonic() + seconds
        while True:
            told = self.archive.sql(ARCHIVED)
            rows = [
                (work_id, status, ended_at)
                for work_id, status, ended_at in (line.split("|") for line in told.splitlines())
            ]
            if len(rows) >= least or time.monotonic() > until:
                return rows
            time.sleep(0.2)

    def close(self) -> None:
        for service in self.services:
            service.send(signal.SIGCONT)
            service.send(signal.SIGKILL)
            if service.process is not None:
                service.wait()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.nats.pid, signal.SIGCONT)
        self.nats.kill()


@contextlib.contextmanager
def stage(folder: Path, settings: Mapping[str, str], **options: object) -> Iterator[Stage]:
    made = Stage(folder, settings, **options)  # type: ignore[arg-type]
    try:
        yield made
    finally:
        made.close()


class CannotPlay(Exception):
    """This machine lacks something that a fault needs."""


@contextlib.contextmanager
def database() -> Iterator[PostgresProcess]:
    """Raises `CannotPlay` where PostgreSQL is not installed."""
    programs = postgres_programs()
    if programs is None:
        raise CannotPlay("PostgreSQL is not installed (Debian: postgresql)")
    with postgres_process(programs) as server:
        yield server


@contextlib.contextmanager
def small_disk(folder: Path, mib: int) -> Iterator[Path]:
    """A file system of its own with so much room. Raises `CannotPlay` without the right to mount."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = shutil.which("mount") or "mount"
    mounted = subprocess.run([mount, "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        raise CannotPlay(f"no file system can be mounted: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run([shutil.which("umount") or "umount", "-l", str(folder)], check=True)
