"""Calls of functions that the owner of this machine enabled by name."""

from collections.abc import Collection, Mapping
from typing import Any

from services.node_agent.model import JobFailed


def name_in(payload: Mapping[str, Any] | None, enabled: Collection[str]) -> str:
    """Which function a payload asks for. Raises `JobFailed`."""
    name = (payload or {}).get("function")
    if not isinstance(name, str):
        raise JobFailed("bad_payload", "`function` must be the name of a function", retryable=False)
    if name not in enabled:
        names = ", ".join(sorted(enabled))
        raise JobFailed("no_such_function", f"{name[:64]!r} is not enabled here; {names} are", retryable=True)
    return name
