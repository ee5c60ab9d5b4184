"""Three real nats-servers that form a cluster on loopback, each with a folder of its own."""

import contextlib
import json
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tests.nats_process import NatsProcess
from tools.free_ports import free_port

SERVERS = 3
READY_SECONDS = 30.0
CLUSTER = """
server_name: "{name}"
http: "127.0.0.1:{monitor}"
cluster {{ name: "mesh", listen: "127.0.0.1:{route}", routes: [{routes}] }}
"""


class NatsCluster:
    """`url` names all servers, so that a client finds another when its own is gone."""

    def __init__(self, folder: Path, *, sync_interval: str = "always") -> None:
        routes = [free_port() for _ in range(SERVERS)]
        self._monitors = [free_port() for _ in range(SERVERS)]
        self.servers: list[NatsProcess] = []
        for number, (route, monitor) in enumerate(zip(routes, self._monitors, strict=True)):
            directory = folder / f"nats-{number}"
            directory.mkdir(parents=True)
            others = ", ".join(f'"nats://127.0.0.1:{each}"' for each in routes)
            extra = CLUSTER.format(name=f"nats-{number}", monitor=monitor, route=route, routes=others)
            self.servers.append(NatsProcess(directory, extra=extra, sync_interval=sync_interval))

    @property
    def url(self) -> str:
        return ",".join(server.url for server in self.servers)

    def start(self) -> None:
        for server in self.servers:
            server.start()
        self.wait_ready()

    def wait_ready(self) -> None:
        """Until one of them leads all of them that run, and these know it as current."""
        until = time.monotonic() + READY_SECONDS
        while not any(self._leads(monitor) for monitor in self._monitors):
            if time.monotonic() > until:
                raise RuntimeError("the cluster has no leader")
            time.sleep(0.05)

    def kill(self) -> None:
        for server in self.servers:
            server.kill()

    def _leads(self, monitor: int) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{monitor}/jsz", timeout=2) as answer:
                told = json.load(answer).get("meta_cluster", {})
        except OSError:
            return False
        replicas = told.get("replicas", ())
        return bool(replicas) and sum(each["current"] for each in replicas) >= SERVERS // 2


@contextlib.contextmanager
def nats_cluster(*, sync_interval: str = "always") -> Iterator[NatsCluster]:
    with tempfile.TemporaryDirectory(prefix="nats-cluster-") as folder:
        cluster = NatsCluster(Path(folder), sync_interval=sync_interval)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.kill()
