"""What vLLM's /metrics tell of a start's memory: the blocks of its cache.

The labels of `vllm:cache_config_info` are the fields of its configuration. Source: `v1/metrics/loggers.py`
(`log_metrics_info`), `config/cache.py` (`CacheConfig.metrics_info`).
"""

import re
from dataclasses import dataclass

_CACHE = re.compile(r"^vllm:cache_config_info\{(.*)\} 1(?:\.0+)?$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldCache:
    """The cache of an engine: so many blocks on each GPU. `utilization` is the part of a GPU it may take."""

    blocks: int
    block_tokens: int | None = None
    utilization: float | None = None


def told_cache(text: str) -> ToldCache | None:
    """Of several engines behind one door that with the fewest blocks; None where none tells."""
    told = [found for line in _CACHE.findall(text) if (found := _of(dict(_LABEL.findall(line)))) is not None]
    return min(told, key=lambda cache: cache.blocks, default=None)


def _of(labels: dict[str, str]) -> ToldCache | None:
    blocks = _whole(labels.get("num_gpu_blocks", ""))
    if not blocks:
        return None
    part = labels.get("gpu_memory_utilization", "")
    return ToldCache(
        blocks=blocks,
        block_tokens=_whole(labels.get("block_size", "")),
        utilization=float(part) if re.fullmatch(r"\d(?:\.\d{1,20})?", part) else None,
    )


def _whole(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\d{1,15}", text, re.ASCII) else None
