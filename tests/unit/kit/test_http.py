"""The HTTP door over real sockets: health, problems, limits, the token, metrics."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import httpx
import pytest
import structlog
from fastapi import APIRouter
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field
from starlette.responses import StreamingResponse

from libs.common.contracts.base import JsonObject, Message
from libs.common.errors import Conflict, Unavailable, WrongSetting
from libs.common.kit.http import readiness
from libs.common.kit.http_server import bind, serving
from libs.common.kit.problems import problem_response
from libs.common.kit.service import degraded_while
from tests.unit.kit.doors import door, opened

MIB = 1024 * 1024


class Order(Message):
    priority: int = Field(ge=0, le=9)
    payload: JsonObject = Field(default_factory=dict)
    ratio: float = 1.0


def routes() -> APIRouter:
    router = APIRouter(prefix="/api/v1")

    @router.post("/orders")
    async def order(order: Order) -> Order:
        return order

    @router.get("/orders/{number}")
    async def look(number: int) -> dict[str, int]:
        if number == 409:
            raise Conflict("It is there already.", number=number)
        if number == 503:
            raise Unavailable("The archive is away.")
        if number == 500:
            raise ZeroDivisionError("a secret")
        return {"number": number}

    return router


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with opened(door(routes())) as open_client:
        yield open_client


def assert_problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["type"] == f"urn:compute-mesh:problem:{code}"
    return problem


async def test_a_service_tells_that_it_is_alive(client: httpx.AsyncClient) -> None:
    answer = await client.get("/healthz")
    assert (answer.status_code, answer.json()) == (200, {"alive": True})


async def test_a_service_tells_its_version(client: httpx.AsyncClient) -> None:
    assert (await client.get("/version")).json()["node_id"] == "node-1"


async def test_readiness_names_every_check_and_the_reason_of_the_one_that_fails() -> None:
    async def well() -> str | None:
        return None

    async def away() -> str | None:
        return "connection refused"

    async def broken() -> str | None:
        raise ZeroDivisionError

    async with opened(door(routes(), checks={"nats": away, "archive": well, "odd": broken})) as client:
        answer = await client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json() == {
        "ready": False,
        "checks": {"nats": "connection refused", "archive": "ok", "odd": "the check itself failed; see the log"},
    }


async def test_a_degraded_service_is_ready_and_says_what_is_wrong() -> None:
    problems: dict[str, str | None] = {"archive": "the archive is away", "other": None}
    checks = {name: degraded_while(partial(problems.get, name)) for name in problems}

    async with opened(door(routes(), checks=checks)) as client:
        answer = await client.get("/readyz")
    assert answer.status_code == 200
    assert answer.json() == {"ready": True, "checks": {"archive": "degraded: the archive is away", "other": "ok"}}


async def test_a_service_is_not_ready_before_it_tried_what_it_can_work_without() -> None:
    tried: list[str] = []
    check = degraded_while(lambda: None, untried=lambda: not tried)

    assert (await readiness({"archive": check})).ready is False
    tried.append("the archive")
    assert (await readiness({"archive": check})).ready is True


async def test_a_check_that_hangs_does_not_hang_readiness() -> None:
    async def hangs() -> str | None:
        await asyncio.Event().wait()
        return None

    told = await readiness({"slow": hangs}, timeout=0.05)
    assert told.ready is False
    assert told.checks == {"slow": "no answer within 0.05 s"}


async def test_an_error_of_ours_is_a_problem_with_its_code_and_details(client: httpx.AsyncClient) -> None:
    problem = assert_problem(await client.get("/api/v1/orders/409"), 409, "conflict")
    assert problem["detail"] == "It is there already."
    assert problem["details"] == {"number": 409}
    assert problem["instance"] == "/api/v1/orders/409"


async def test_an_unavailable_service_says_when_to_try_again(client: httpx.AsyncClient) -> None:
    answer = await client.get("/api/v1/orders/503")
    assert_problem(answer, 503, "unavailable")
    assert answer.headers["retry-after"] == "1"


async def test_an_error_may_say_itself_when_to_try_again() -> None:
    error = Unavailable("Full.", retry_after_seconds=2.5)
    assert problem_response(error, instance="/").headers["retry-after"] == "3"


async def test_a_bug_is_answered_without_detail_and_logged_once(client: httpx.AsyncClient) -> None:
    with structlog.testing.capture_logs() as lines:
        answer = await client.get("/api/v1/orders/500")
    assert_problem(answer, 500, "internal")
    assert "secret" not in answer.text
    assert [line["event"] for line in lines if line["log_level"] == "error"] == ["http_request_failed"]


async def test_a_wrong_field_is_named_with_its_value_and_what_is_allowed(client: httpx.AsyncClient) -> None:
    problem = assert_problem(await client.post("/api/v1/orders", json={"priority": 12}), 422, "malformed")
    assert problem["detail"] == "priority: should be less than or equal to 9"
    wrong = {"field": "priority", "value": 12, "allowed": "should be less than or equal to 9"}
    assert problem["details"]["errors"] == [wrong]


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"\xff\xfe{}",
        b'{"priority": NaN}',
        b'{"priority": 1, "ratio": Infinity}',
        b'{"priority": 1, "payload": {"a": NaN}}',
        b'{"priority": 1, "payload": ' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}",
        b'{"priority": 1, "payload": {"a": ' + b"9" * 5000 + b"}}",
        b'{"priority": 1' + b"0" * 4000 + b"}",
        b'{"priority": "\\ud800"}',
        b"[" * 200_000,
        b"",
        b"null",
        b"[]",
    ],
    ids=lambda body: repr(body[:40]),
)
async def test_hostile_json_is_malformed(client: httpx.AsyncClient, body: bytes) -> None:
    answer = await client.post("/api/v1/orders", content=body, headers={"content-type": "application/json"})
    assert_problem(answer, 422, "malformed")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["priority", "payload", "a"]), inner),
    max_leaves=8,
)


@given(st.binary() | JSON_VALUES.map(lambda value: json.dumps(value).encode()))
async def test_whatever_the_body_is_the_answer_is_an_order_or_a_problem(body: bytes) -> None:
    app = door(routes()).app
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        answer = await client.post("/api/v1/orders", content=body, headers={"content-type": "application/json"})
    if answer.status_code != 200:
        assert_problem(answer, 422, "malformed")


async def test_an_unknown_route_and_a_wrong_method_are_problems(client: httpx.AsyncClient) -> None:
    assert_problem(await client.get("/nowhere"), 404, "not_found")
    wrong_method = await client.delete("/api/v1/orders")
    assert_problem(wrong_method, 405, "method_not_allowed")
    assert wrong_method.headers["allow"] == "POST"


async def test_a_body_that_says_it_is_too_large_is_refused_before_any_of_it_came(client: httpx.AsyncClient) -> None:
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    writer.write(b"POST /api/v1/orders HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
    writer.write(b"Content-Length: %d\r\n\r\n" % (MIB + 1))
    async with asyncio.timeout(5):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 413 ")
    writer.close()


async def test_a_body_that_is_too_large_is_a_problem(client: httpx.AsyncClient) -> None:
    problem = assert_problem(await client.post("/api/v1/orders", content=b" " * (MIB + 1)), 413, "too_large")
    assert problem["detail"] == "The body is larger than 1 MiB; send less at once, or set HTTP_BODY_LIMIT_MB."
    assert problem["details"] == {"field": "body", "value": MIB + 1, "limit": MIB}


async def test_a_body_that_turns_out_too_large_is_refused_while_it_still_streams(client: httpx.AsyncClient) -> None:
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    writer.write(b"POST /api/v1/orders HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
    writer.write(b"Transfer-Encoding: chunked\r\n\r\n")
    answered = asyncio.create_task(reader.readuntil(b"\r\n\r\n"))
    sent = 0
    while not answered.done() and sent < 64 * MIB:
        writer.write(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
        await writer.drain()
        sent += 0x10000
    assert (await answered).startswith(b"HTTP/1.1 413 ")
    assert sent < 16 * MIB  # one that is still in flight, not the whole of it
    writer.close()


async def test_the_token_guards_everything_but_healthz() -> None:
    async with opened(door(routes(), token="a-long-token")) as client:
        for path in ("/readyz", "/metrics", "/docs", "/nowhere"):
            answer = await client.get(path)
            assert_problem(answer, 401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
        wrong = await client.get("/readyz", headers={"authorization": "Bearer another"})
        assert_problem(wrong, 401, "unauthorized")
        basic = await client.get("/readyz", headers={"authorization": "Basic a-long-token"})
        assert_problem(basic, 401, "unauthorized")
        odd = await client.get("/readyz", headers={"authorization": b"Bearer \xff\xfe"})
        assert_problem(odd, 401, "unauthorized")
        assert (await client.get("/healthz")).status_code == 200
        right = await client.get("/readyz", headers={"authorization": "bearer a-long-token"})
        assert right.status_code == 200


async def test_a_correlation_id_is_kept_and_one_that_is_unfit_is_replaced(client: httpx.AsyncClient) -> None:
    kept = await client.get("/api/v1/orders/409", headers={"correlation-id": "abc-123"})
    assert kept.headers["correlation-id"] == "abc-123"
    assert kept.json()["correlation_id"] == "abc-123"
    replaced = await client.get("/healthz", headers={"correlation-id": "x" * 500})
    assert len(replaced.headers["correlation-id"]) == 32


async def test_requests_are_counted_by_template_never_by_path(client: httpx.AsyncClient) -> None:
    await client.get("/api/v1/orders/1")
    await client.get("/api/v1/orders/2")
    await client.get("/surprise")
    await client.request("PROPFIND", "/surprise")
    page = (await client.get("/metrics")).text
    assert 'mesh_http_requests_total{method="GET",route="/api/v1/orders/{number}",status="200"} 2.0' in page
    assert 'mesh_http_requests_total{method="GET",route="unmatched",status="404"} 1.0' in page
    assert 'mesh_http_requests_total{method="other",route="unmatched",status="404"} 1.0' in page
    assert "surprise" not in page


async def test_openapi_documents_the_problems_of_every_route(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    for path in document["paths"].values():
        for operation in path.values():
            assert {"401", "404", "405", "413", "422", "500", "503"} <= set(operation["responses"])
    problem = document["paths"]["/api/v1/orders"]["post"]["responses"]["422"]
    assert list(problem["content"]) == ["application/problem+json"]
    assert "Problem" in document["components"]["schemas"]
    assert "HTTPValidationError" not in json.dumps(document)


async def test_a_taken_port_is_told_in_one_sentence() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(WrongSetting) as refused:
            bind("127.0.0.1", port, variable="NODE_REGISTRY_PORT")
    expected = f"Port {port} on 127.0.0.1 is taken by another program; stop it or set NODE_REGISTRY_PORT."
    assert refused.value.message == expected


async def test_an_address_of_another_machine_is_told_in_one_sentence() -> None:
    with pytest.raises(WrongSetting, match=r"HTTP_HOST is '192\.0\.2\.1', which is no address of this machine"):
        bind("192.0.2.1", 0, variable="NODE_REGISTRY_PORT")


async def test_a_request_in_hand_is_finished_when_the_door_closes() -> None:
    router, entered, go_on = APIRouter(), asyncio.Event(), asyncio.Event()

    @router.get("/slow")
    async def slow() -> str:
        entered.set()
        await go_on.wait()
        return "done"

    async with asyncio.TaskGroup() as tasks, opened(door(router)) as client:
        asked = tasks.create_task(client.get("/slow"))
        await entered.wait()
        tasks.create_task(_set_when_closed(client, go_on))
    assert asked.result().json() == "done"


async def _set_when_closed(client: httpx.AsyncClient, event: asyncio.Event) -> None:
    """Once new connections are refused, let the request in hand go on."""
    url = client.base_url
    while True:
        try:
            _, writer = await asyncio.open_connection(url.host, url.port)
        except ConnectionError:
            return event.set()
        writer.close()
        await writer.wait_closed()


async def test_an_endless_event_stream_ends_cleanly_when_the_door_closes() -> None:
    router = APIRouter()

    @router.get("/events")
    async def events() -> StreamingResponse:
        async def forever() -> AsyncIterator[bytes]:
            yield b"data: first\n\n"
            await asyncio.Event().wait()

        return StreamingResponse(forever(), media_type="text/event-stream")

    made, listener = door(router), bind("127.0.0.1", 0, variable="X")
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/events"
    heard: list[str] = []
    first = asyncio.Event()

    async def listen(client: httpx.AsyncClient) -> None:
        async with client.stream("GET", url) as answer:
            async for line in answer.aiter_lines():
                heard.append(line)
                first.set()

    async with httpx.AsyncClient() as client, asyncio.TaskGroup() as tasks:
        async with asyncio.timeout(5):
            async with serving(made.app, listener, drain_seconds=60, closing=made.streams.end):
                listening = tasks.create_task(listen(client))
                await first.wait()
            await listening
    assert heard[0] == "data: first"
