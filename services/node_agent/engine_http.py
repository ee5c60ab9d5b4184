"""How the agent asks engines over HTTP."""

from collections.abc import Mapping

import httpx


def engine_client(headers: Mapping[str, str] | None = None) -> httpx.AsyncClient:
    """To engines on this machine only: no proxy, no certificates.

    A connection for each request: llama.cpp ends kept ones after a hundred requests without saying so, which would fail
    a job in a hundred, and a new one costs a tenth of a millisecond here.
    """
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.AsyncClient(headers=headers, limits=limits, trust_env=False, verify=False)
