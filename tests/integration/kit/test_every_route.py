"""Whatever is asked of any route of any service, the answer is one that its OpenAPI document tells of."""

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.mesh_process import SERVICES, MeshProcess, mesh_process

IN_PATHS = ["x", "-1", "0", "..", "9" * 400, quote("a/b", safe=""), "%00", "%ff", quote("ü😀")]
QUERIES = ["", "?limit=x", "?limit=-1&wait_seconds=nan", "?limit=" + "9" * 40 + "&offset=-5&cursor=%00&status=odd"]
BODIES = [
    b"",
    b"{",
    b"null",
    b"[]",
    b"{}",
    b"\xff",
    b"[" * 50_000,
    b'{"model": "\\ud800", "node_id": "\\u0000"}',
    b'{"work_type": 7, "priority": 1e308, "gpu_count": -1, "vram_mb": 1' + b"0" * 400 + b', "ram_mb": NaN}',
]
OUTAGES = {503, 504}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshProcess]:
    with mesh_process(tmp_path_factory.mktemp("routes") / "data") as running:
        yield running.start().wait_ready()


@pytest.mark.parametrize("service", SERVICES)
def test_every_answer_is_documented_and_every_refusal_is_a_problem(mesh: MeshProcess, service: str) -> None:
    with httpx.Client(base_url=mesh.url(service), timeout=20) as client:
        document = client.get("/openapi.json").json()
        wrong = [
            f"{request.method} {request.url} {request.content[:60]!r}: {answer.status_code} {answer.text[:200]}"
            for request, operation in requests(client, document)
            if not fits(answer := client.send(request), operation)
        ]
    assert wrong == []
    assert "http_request_failed" not in mesh.output


def requests(client: httpx.Client, document: dict[str, Any]) -> Iterator[tuple[httpx.Request, dict[str, Any]]]:
    for template, operations in document["paths"].items():
        paths = [re.sub(r"\{[^}]*\}", part, template) for part in IN_PATHS] if "{" in template else [template]
        for method, operation in operations.items():
            if _goes_on(operation):
                continue
            for path in paths:
                for query in QUERIES:
                    yield client.build_request(method, path + query), operation
                if "requestBody" in operation:
                    for body in BODIES:
                        headers = {"content-type": "application/json"}
                        yield client.build_request(method, path, content=body, headers=headers), operation


def _goes_on(operation: dict[str, Any]) -> bool:
    """A stream of events has no end to wait for; those are tested where they are made."""
    return "text/event-stream" in operation["responses"].get("200", {}).get("content", {})


def fits(answer: httpx.Response, operation: dict[str, Any]) -> bool:
    if answer.status_code >= 500 and answer.status_code not in OUTAGES:
        return False
    documented = operation["responses"].get(str(answer.status_code))
    if documented is None:
        return False
    return answer.headers.get("content-type", "").split(";")[0] in documented.get("content", {"": {}})
