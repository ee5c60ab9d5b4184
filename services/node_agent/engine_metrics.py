"""What an engine's /metrics say of the requests that it has in hand."""

import re

_IN_HAND = re.compile(
    r"^(?:vllm:num_requests_(?:running|waiting)|llamacpp:requests_(?:processing|deferred))(?:\{[^}]*\})? ([0-9.e+]+)$",
    re.MULTILINE,
)


def requests_in_hand(metrics: str) -> float | None:
    """Running and waiting ones; None where the engine does not tell. Source: the metrics of vLLM and of llama.cpp."""
    found = _IN_HAND.findall(metrics)
    return sum(map(float, found)) if found else None
