"""Requests as bytes, in whatever pieces and however wrong, on a real socket."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable

import httpx
import pytest
from fastapi import APIRouter, Request

from libs.common.kit.http_reading import MOST_UNFINISHED_BYTES
from tests.unit.kit.doors import door, opened

GET = b"GET /told HTTP/1.1\r\nHost: x\r\n"
CHUNKED = b"POST /told HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
SENT_AT_ONCE = 1000


def routes() -> APIRouter:
    router = APIRouter()

    @router.api_route("/told", methods=["GET", "POST"])
    async def told(request: Request) -> dict[str, object]:
        body = await request.body()
        return {"body": body.decode(), "names": sorted(request.headers), "query": str(request.query_params)}

    return router


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with opened(door(routes())) as open_client:
        yield open_client


async def answers(
    client: httpx.AsyncClient, *sent: bytes, count: int = 1, first: Awaitable[object] | None = None
) -> list[tuple[int, bytes]]:
    """The first `count` answers to these bytes, sent one piece after the other; fewer when the connection ends.
    `first` is awaited behind the first piece: an answer to it shows that this piece was read."""
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    try:
        async with asyncio.timeout(10):
            for piece in sent:
                writer.write(piece)
                await writer.drain()
                if first is not None:
                    await first
                    first = None
            return [each for _ in range(count) if (each := await answer(reader)) is not None]
    except ConnectionError:  # it was closed while we still wrote
        return [each for _ in range(count) if (each := await answer(reader)) is not None]
    finally:
        writer.close()


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes] | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return int(head.split()[1]), await reader.readexactly(length)


def pieces(whole: bytes) -> list[bytes]:
    return [whole[at : at + SENT_AT_ONCE] for at in range(0, len(whole), SENT_AT_ONCE)]


@pytest.mark.parametrize(
    ("begins", "goes_on"),
    [
        (b"", b"\r\n"),
        (b"GET /", b"x"),
        (b"GET /told?", b"x"),
        (GET, b"x"),
        (GET + b"X: ", b"y"),
        (GET, b"X: y\r\n"),
        (CHUNKED + b"1;", b"x"),
        (CHUNKED + b"1\r\na\r\n0\r\n", b"X: y\r\n"),
    ],
    ids=["nothing", "path", "query", "name", "value", "headers", "chunk", "trailers"],
)
async def test_what_never_ends_is_refused_once_it_is_too_long(client: httpx.AsyncClient, begins: bytes, goes_on: bytes):
    too_long = (goes_on * (MOST_UNFINISHED_BYTES + 1))[: MOST_UNFINISHED_BYTES + 1]

    told = await answers(client, begins, *pieces(too_long), count=2, first=client.get("/healthz"))

    assert [status for status, _ in told] == [400]
    assert (await client.get("/healthz")).status_code == 200


async def test_a_head_that_is_nearly_as_long_as_it_may_be_is_read_whole(client: httpx.AsyncClient):
    long = b"X-Long: " + b"y" * (MOST_UNFINISHED_BYTES - 1000) + b"\r\n\r\n"
    [(status, body)] = await answers(client, *pieces(GET + long))

    assert (status, b'"x-long"' in body) == (200, True)


async def test_a_body_may_come_in_as_many_pieces_as_it_likes(client: httpx.AsyncClient):
    text = b"abcdefgh" * MOST_UNFINISHED_BYTES
    whole = CHUNKED + b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in pieces(text)) + b"0\r\n\r\n"
    [(status, body)] = await answers(client, *pieces(whole))

    assert (status, text in body) == (200, True)


async def test_a_request_may_come_byte_by_byte(client: httpx.AsyncClient):
    whole = b"POST /told?a=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi"
    [(status, body)] = await answers(client, *(whole[at : at + 1] for at in range(len(whole))))

    assert (status, b'"body":"hi"' in body, b'"query":"a=1"' in body) == (200, True, True)


async def test_fields_behind_a_body_are_no_headers(client: httpx.AsyncClient):
    [(status, body)] = await answers(client, CHUNKED + b"2\r\nhi\r\n0\r\nX-Behind: y\r\n\r\n")

    assert (status, b"x-behind" in body, b'"hi"' in body) == (200, False, True)


async def test_requests_on_one_connection_are_answered_one_after_the_other(client: httpx.AsyncClient):
    paths = (b"/told?n=1", b"/nowhere", b"/told?n=3", b"/healthz")
    asked = b"".join(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path for path in paths)
    told = await answers(client, asked, count=4)

    assert [status for status, _ in told] == [200, 404, 200, 200]
    assert b'"query":"n=1"' in told[0][1]
    assert b'"query":"n=3"' in told[2][1]


async def test_who_offers_another_protocol_is_answered_in_this_one(client: httpx.AsyncClient):
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
    with_body = b"POST /told?a=b HTTP/1.1\r\nHost: x\r\n" + upgrade + b"Content-Length: 2\r\n\r\nhi"
    chunked = b"POST /told HTTP/1.1\r\n" + upgrade + b"Transfer-Encoding: chunked\r\n\r\n2\r\nho\r\n0\r\n\r\n"
    asked = with_body + chunked + GET + upgrade + b"\r\n" + GET + b"\r\n"

    together = await answers(client, asked, count=4)
    apart = await answers(client, *(asked[at : at + 1] for at in range(len(asked))), count=4)

    assert [status for status, _ in together] == [200] * 4
    assert [json.loads(body)["body"] for _, body in together] == ["hi", "ho", "", ""]
    assert (json.loads(together[0][1])["query"], together) == ("a=b", apart)


async def test_who_asks_for_a_tunnel_is_refused_and_may_ask_for_something_else(client: httpx.AsyncClient):
    told = await answers(client, b"CONNECT /told HTTP/1.1\r\nHost: x\r\n\r\n" + GET + b"\r\n", count=2)

    assert [status for status, _ in told] == [405, 200]


@pytest.mark.parametrize(
    "wrong",
    [
        *(
            b"\x16\x03\x01\x02\x00\x01\x00",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"GET\r\n\r\n",
            b"GET /told HTTP/9.9\r\n\r\n",
        ),
        *(b"FETCH /told HTTP/1.1\r\n\r\n", GET + b"no colon\r\n\r\n"),
        b"GET /t\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /told HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi",
        b"POST /told HTTP/1.1\r\nHost: x\r\nContent-Length: -2\r\n\r\nhi",
        b"POST /told HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nhi",
        *(CHUNKED + b"zz\r\n", CHUNKED + b"fffffffffffffffffff\r\n"),
    ],
)
async def test_what_is_no_request_is_refused_and_costs_its_connection_alone(client: httpx.AsyncClient, wrong: bytes):
    told = await answers(client, wrong, GET + b"\r\n", count=2)

    assert [status for status, _ in told] == [400]
    assert (await client.get("/healthz")).status_code == 200
