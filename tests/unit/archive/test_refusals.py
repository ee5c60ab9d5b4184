"""What PostgREST refuses, in the words of its versions, is told as ours.

Bodies of version 12 are what it answers in the contract tests; those of 14, which cannot run here, are from its
documentation and from what its users have recorded.
"""

import httpx
import pytest

from libs.common.archive.archive_supabase import SupabaseArchive
from libs.common.errors import Malformed, MeshError, Unavailable
from tests.contract.archive.parts import THINGS, thing

SET_UP = "supabase/migrations"
# Status, body, our error, and what it says.
BODIES: list[tuple[int, str, type[MeshError], str]] = [
    # PostgREST 12
    (
        404,
        '{"code":"42P01","details":null,"hint":null,"message":"relation \\"public.things\\" does not exist"}',
        Unavailable,
        SET_UP,
    ),
    (404, "{}", Unavailable, SET_UP),
    (
        400,
        '{"code":"42703","details":null,"hint":null,"message":"column things.note does not exist"}',
        Unavailable,
        SET_UP,
    ),
    (
        503,
        '{"code":"PGRST000","details":"connection to server at \\"127.0.0.1\\" failed: Connection refused","hint":null,'
        '"message":"Database connection error. Retrying the connection."}',
        Unavailable,
        "PGRST000",
    ),
    (
        401,
        '{"code":"PGRST301","details":null,"hint":null,"message":"JWSError JWSInvalidSignature"}',
        Unavailable,
        "SUPABASE_SERVICE_KEY",
    ),
    (
        401,
        '{"code":"42501","details":null,"hint":null,"message":"permission denied for table things"}',
        Unavailable,
        "SUPABASE_SERVICE_KEY",
    ),
    # PostgREST 14
    (
        404,
        '{"code":"PGRST205","details":null,"hint":"Perhaps you meant the table \'public.thing\'",'
        '"message":"Could not find the table \'public.things\' in the schema cache"}',
        Unavailable,
        SET_UP,
    ),
    (
        400,
        '{"code":"PGRST204","details":null,"hint":null,'
        "\"message\":\"Could not find the 'note' column of 'things' in the schema cache\"}",
        Unavailable,
        SET_UP,
    ),
    (
        401,
        '{"code":"PGRST301","details":"None of the keys was able to decode the JWT","hint":null,'
        '"message":"No suitable key or wrong key type"}',
        Unavailable,
        "SUPABASE_SERVICE_KEY",
    ),
    (401, '{"code":"PGRST303","details":null,"hint":null,"message":"JWT expired"}', Unavailable, "expired"),
    (
        503,
        '{"code":"PGRST002","details":null,"hint":null,'
        '"message":"Could not query the database for the schema cache. Retrying."}',
        Unavailable,
        "PGRST002",
    ),
    (
        504,
        '{"code":"PGRST003","details":null,"hint":null,"message":"Timed out acquiring connection from '
        'connection pool."}',
        Unavailable,
        "PGRST003",
    ),
    # Both
    (
        400,
        '{"code":"23502","details":"Failing row contains (a, null).","hint":null,'
        '"message":"null value in column \\"at\\" of relation \\"things\\" violates not-null constraint"}',
        Malformed,
        "23502",
    ),
    (
        500,
        '{"code":"21000","details":null,"hint":"Ensure that no rows proposed for insertion within the same command '
        'have duplicate constrained values.","message":"ON CONFLICT DO UPDATE command cannot affect row a second '
        'time"}',
        Malformed,
        "21000",
    ),
    (500, '{"code":"57014","details":null,"hint":null,"message":"canceling statement"}', Unavailable, "57014"),
    # What stands before PostgREST
    (401, '{"message":"No API key found in request"}', Unavailable, "No API key"),
    (502, "<html><body>502 Bad Gateway</body></html>", Unavailable, "502"),
    (520, "", Unavailable, "520"),
]


def _answering(status: int, body: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(status, text=body)))


@pytest.mark.parametrize(("status", "body", "ours", "words"), BODIES)
async def test_a_refusal_is_told_as_ours(status: int, body: str, ours: type[MeshError], words: str):
    archive = SupabaseArchive("http://127.0.0.1:1", "a-service-key", http=lambda: _answering(status, body))

    with pytest.raises(ours, match=words) as raised:
        await archive.upsert(THINGS, [thing()])
    with pytest.raises(ours, match=words):
        await archive.page(THINGS)

    assert archive.problem() == (raised.value.message if ours is Unavailable else None)
    await archive.close()
