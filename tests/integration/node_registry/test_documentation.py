"""The calls that the documentation of machines shows, in their order, as they are written there."""

import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from tests.mesh_process import MeshProcess, mesh_process
from tests.nats_process import NatsProcess
from tests.unit.house_rules import ROOT

PAGE = ROOT / "docs" / "machines.md"
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
ADDRESS = "http://localhost:8115"


@pytest.fixture
def registry(tmp_path: Path, nats: NatsProcess) -> Iterator[MeshProcess]:
    with mesh_process(tmp_path / "registry", NATS_URL=nats.url) as mesh:
        yield mesh.start(("-m", "services.node_registry")).wait_ready(["node_registry"])


def commands() -> list[list[str]]:
    """Each `curl` line as its words; a body may go over several lines."""
    text = "\n".join(BLOCK.findall(PAGE.read_text(encoding="utf-8")))
    starts = [found.start() for found in re.finditer(r"^curl ", text, re.MULTILINE)]
    ends = [*starts[1:], len(text)]
    return [shlex.split(text[start:end], comments=True) for start, end in zip(starts, ends, strict=True)]


def send(registry: MeshProcess, words: list[str]) -> httpx.Response:
    options = dict(pairwise(words))
    (address,) = [word for word in words if word.startswith(ADDRESS)]
    return httpx.request(
        options.get("-X", "GET"),
        address.replace(ADDRESS, registry.url("node_registry")),
        content=options.get("-d"),
        headers=dict([options["-H"].split(": ")]) if "-H" in options else None,
        timeout=20,
    )


def test_every_call_that_is_shown_is_answered(registry: MeshProcess):
    shown = commands()

    assert len(shown) >= 10
    for words in shown:
        answer = send(registry, words)
        assert answer.status_code == httpx.codes.OK, (words, answer.text)


@pytest.mark.parametrize(
    "body",
    [
        {"node_id": "bare"},
        {"node_id": "n", "hostname": "h", "tier": "GPU_PEER", "cpu": {}, "memory": {}, "gpus": []},
        {"node_id": "n", "tier": "ai_factory", "gpus": [{}], "anything": {"that": "we do not know"}},
        {"node_id": "n", "cpu": {"cores": 8, "brand": "x"}, "memory": {"total_mb": 1}, "gpus": [{"name": "T4"}]},
    ],
)
def test_a_partial_registration_is_found_by_the_documented_queries(registry: MeshProcess, body: dict[str, object]):
    base = f"{registry.url('node_registry')}/api/v1/nodes"
    told = httpx.post(f"{base}/register", json=body, timeout=20).raise_for_status().json()
    known = httpx.get(f"{base}/{body['node_id']}", timeout=20).raise_for_status().json()
    queries = ({"requires_gpu": True, "min_tier": "gpu_peer", "online_only": True}, {"requires_gpu": True})
    found = [httpx.post(f"{base}/query", json=query, timeout=20).raise_for_status().json() for query in queries]

    assert (told["node_id"], told["state"]) == (known["node_id"], "ONLINE")
    has_gpu = bool(body.get("gpus"))
    assert found[1]["total"] == has_gpu
    assert found[0]["total"] == (has_gpu and known["tier"] in ("AI_FACTORY", "GPU_PEER"))
