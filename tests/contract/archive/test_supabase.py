"""What is only true of Supabase: who may use the tables."""

import json
import urllib.error
import urllib.request

import pytest

from libs.common.archive.archive_supabase import PROBE, SupabaseArchive
from libs.common.archive.tables import Table
from libs.common.errors import Unavailable
from services.node_registry.tables import NODE_EVENTS, NODES
from services.work_marshaling.tables import WORK_ITEMS
from tests.contract.archive.parts import THINGS, thing
from tests.postgrest_process import Supabase

SHIPPED = (NODES, NODE_EVENTS, WORK_ITEMS)


def _asked(supabase: Supabase, path: str, key: str, method: str = "GET", body: object = None) -> tuple[int, str]:
    headers = {"apikey": key, "Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(
        f"{supabase.url}/rest/v1/{path}",
        headers=headers,
        method=method,
        data=json.dumps(body).encode() if body else None,
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.parametrize("table", [*SHIPPED, PROBE], ids=lambda table: table.name)
def test_the_public_key_opens_no_table(contract_supabase: Supabase, table: Table):
    row = {table.key[0]: "x"}
    for method, body in (("GET", None), ("POST", row), ("PATCH", row), ("DELETE", None)):
        path = f"{table.name}?{table.key[0]}=eq.x"
        status, answer = _asked(contract_supabase, path, contract_supabase.anon_key, method, body)
        assert (status, json.loads(answer)["code"]) == (401, "42501"), (method, answer)


@pytest.mark.parametrize("function", ["archive_keep_newest", "archive_keep_first"])
def test_the_public_key_calls_no_function(contract_supabase: Supabase, function: str):
    allowed = contract_supabase.sql(
        f"select role, has_function_privilege(role, '{function}()', 'execute') from unnest(array['anon', "
        "'authenticated']) as role"
    )

    assert allowed.split() == ["anon|f", "authenticated|f"]


async def test_the_shipped_tables_are_there_for_the_service_key(contract_supabase: Supabase):
    archive = SupabaseArchive(contract_supabase.url, contract_supabase.service_key)

    for table in SHIPPED:
        assert (await archive.page(table, limit=1)).cursor is None

    await archive.close()


async def test_the_public_key_in_the_place_of_the_service_key_is_told(contract_supabase: Supabase):
    archive = SupabaseArchive(contract_supabase.url, contract_supabase.anon_key)

    with pytest.raises(Unavailable, match="SUPABASE_SERVICE_KEY is not the service key"):
        await archive.upsert(THINGS, [thing()])

    await archive.close()


async def test_a_key_that_is_not_known_is_told(contract_supabase: Supabase):
    archive = SupabaseArchive(contract_supabase.url, "no-such-key")

    with pytest.raises(Unavailable, match="No API key"):
        await archive.ping()

    await archive.close()
