"""Whatever is asked over REST, the answer is one that the OpenAPI document tells of."""

from collections.abc import Iterator

import hypothesis
import pytest
import schemathesis
from hypothesis.strategies import SearchStrategy
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from services.suite import SUITE
from tests.mesh_process import MeshProcess, mesh_process

SERVICES = tuple(SUITE)
CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
OF_EVERY_SERVICE = ("/healthz", "/readyz", "/metrics", "/version")
LASTING = ("POST /api/v1/benchmark/run",)
EXAMPLES = 6


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshProcess]:
    folder = tmp_path_factory.mktemp("schemathesis")
    with mesh_process(folder / "mesh") as started:
        yield started.start(("-m", "services")).wait_ready(SERVICES)


@pytest.mark.parametrize("service", SERVICES)
def test_every_answer_is_documented_and_none_is_a_fault_of_ours(mesh: MeshProcess, service: str):
    document = schemathesis.openapi.from_url(f"{mesh.url(service)}/openapi.json").exclude(func=never_ends)
    asked = 0
    for found in document.get_all_operations():
        ask(found.ok())
        asked += 1

    assert asked >= len(OF_EVERY_SERVICE)


def never_ends(context: schemathesis.HookContext) -> bool:
    """Streams of events, and what runs for as long as it is asked to, are tested apart."""
    assert context.operation is not None
    stream = "text/event-stream" in str(context.operation.definition.raw["responses"])
    return stream or context.operation.label in LASTING


def ask(operation: schemathesis.APIOperation) -> None:
    @hypothesis.seed(1)
    @hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    )
    @hypothesis.given(case=cases(operation))
    def every_case(case: schemathesis.Case) -> None:
        answer = case.call(timeout=20)
        assert answer.status_code < 500 or answer.status_code == 503, f"{operation.label}: {answer.text}"
        case.validate_response(answer, checks=CHECKS)

    every_case()


def cases(operation: schemathesis.APIOperation) -> SearchStrategy[schemathesis.Case]:
    """What the document allows, and where anything can be wrong also what it does not."""
    allowed = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    if not (operation.body or operation.query or operation.path_parameters):
        return allowed
    return allowed | operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
