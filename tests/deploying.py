"""Who speaks with the orchestrator of a whole mesh over REST: deploys, waits, looks."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.mesh_process import MeshProcess


class Deploying:
    """`programs` is the folder of what stands for vLLM there; `patience` how many seconds any state may take."""

    def __init__(self, mesh: MeshProcess, programs: Path, *, patience: float = 60) -> None:
        self.mesh = mesh
        self.programs = programs
        self.patience = patience
        self.client = httpx.Client(trust_env=False, timeout=30)

    def call(self, method: str, path: str, **more: Any) -> httpx.Response:
        return self.client.request(method, f"{self.mesh.url('vllm_orchestrator')}/api/v1/vllm{path}", **more)

    def deploy(self, **fields: Any) -> dict[str, Any]:
        asked = {"model_name": "tiny", "instance_name": "one", "device": "cpu"} | fields
        answer = self.call("POST", "/deploy", json=asked)
        assert answer.status_code == httpx.codes.ACCEPTED, answer.text
        return answer.json()

    def until(self, holds: Callable[[dict[str, Any]], object], name: str = "one") -> dict[str, Any]:
        until = time.monotonic() + self.patience
        while True:
            answer = self.call("GET", f"/instances/{name}")
            if answer.is_success and holds(answer.json()):
                return answer.json()
            assert time.monotonic() < until, f"{answer.text}\n{self.events(name)}\n{self.mesh.output}"
            time.sleep(0.05)

    def until_ready(self, name: str = "one") -> dict[str, Any]:
        return self.until(lambda told: told["state"] == "READY", name)

    def until_gone(self, name: str = "one") -> None:
        until = time.monotonic() + self.patience
        while self.call("GET", f"/instances/{name}").status_code != httpx.codes.NOT_FOUND:
            assert time.monotonic() < until, self.events(name)
            time.sleep(0.05)

    def events(self, name: str = "one") -> list[str]:
        told = self.call("GET", f"/instances/{name}/events").json()
        return [f"{event['state']} {event['message']}" for event in told.get("events", [])]

    def steps(self, name: str = "one") -> list[tuple[int | None, str]]:
        """The same, each with its replica."""
        told = self.call("GET", f"/instances/{name}/events").json()["events"]
        return [(event["replica"], f"{event['state']} {event['message']}".strip()) for event in told]

    def log(self, name: str = "one") -> str:
        return self.call("GET", f"/instances/{name}/logs", params={"characters": 100_000}).json()["text"]

    def completed(self, work_id: str, model_name: str, payload: dict[str, Any]) -> dict[str, Any]:
        """Chat work, submitted and waited for. Returns what the queue tells of it."""
        url = f"{self.mesh.url('work_marshaling')}/api/v1/work"
        work = {"work_id": work_id, "work_type": "chat", "model_name": model_name, "payload": payload}
        submitted = self.client.post(f"{url}/submit", json=work)
        assert submitted.is_success, submitted.text
        until = time.monotonic() + self.patience
        while (item := self.client.get(f"{url}/{work_id}").json())["status"] != "completed":
            assert time.monotonic() < until, item
            time.sleep(0.05)
        return item

    def until_nodes(self, count: int) -> None:
        """Until the registry knows so many."""
        until = time.monotonic() + self.patience
        url = f"{self.mesh.url('node_registry')}/api/v1/nodes"
        while len(found := self.client.get(url).json()["nodes"]) < count:
            assert time.monotonic() < until, found
            time.sleep(0.05)

    def reservations(self) -> list[dict[str, Any]]:
        url = f"{self.mesh.url('gpu_orchestrator')}/api/v1/gpu/reservations"
        return [each for each in self.client.get(url).json()["reservations"] if each["owner"] == "vllm_orchestrator"]

    def claims(self) -> list[dict[str, Any]]:
        """Reservations that still keep memory."""
        return [each for each in self.reservations() if each["state"] in ("held", "committed")]


def runs(pid: int) -> bool:
    """Nobody may be there to collect one whose parent was killed."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
