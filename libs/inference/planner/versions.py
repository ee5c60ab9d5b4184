"""Which rules a version of vLLM has, where they changed."""

import re
from dataclasses import dataclass
from functools import cache

from libs.common.errors import Malformed

NEWEST = (0, 33)


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A version of vLLM. `first_generation` is the engine before V1, which 0.8 to 0.10 could still run."""

    version: tuple[int, int] = NEWEST
    first_generation: bool = False

    @property
    def counts_graphs(self) -> bool:
        """Graphs are taken from the budget. Source: `VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS` is on since 0.21."""
        return self.version >= (0, 21)

    @property
    def counts_context(self) -> bool:
        """The CUDA context counts as the engine's own: what is used is compared with an empty GPU before 0.7.

        Since then it is compared with what was used once the context was there. Source: `worker/worker.py`
        (`determine_num_available_blocks`) of 0.6, `utils.py` (`memory_profiling`) of 0.7.
        """
        return self.version < (0, 7)

    @property
    def heeds_cache_type(self) -> bool:
        """A checkpoint that names a type for the cache has it kept so. Source: see `cache_type_of`."""
        return self.version >= (0, 12)

    @property
    def utilization(self) -> float:
        """The default of `gpu_memory_utilization`. Source: `config/cache.py`."""
        return 0.92 if self.version >= (0, 20) else 0.9

    @property
    def masks_scores(self) -> bool:
        """A kernel masks the unlikely words since 0.17, and FlashInfer's since 0.21 where it runs on the GPU.

        Before, words are sorted, unless FlashInfer was installed beside 0.8 to 0.11.0, which do not require it, or
        asked for by `VLLM_USE_FLASHINFER_SAMPLER`. Source: `v1/sample/ops/topk_topp_sampler.py`, `envs.py` and the
        metadata of the packages of 0.8 to 0.13, 0.15 to 0.17, 0.19 to 0.21, 0.24 and 0.33.
        """
        return self.version >= (0, 17)

    @property
    def chunk_tokens(self) -> int:
        """How many tokens of a long length the first generation prefilled at once: 512, and 2048 from 0.6.5 on.

        The larger counts for all of 0.6. Source: `config.py` (`SchedulerConfig`) of 0.5.4 to 0.8.3.
        """
        return 512 if self.version < (0, 6) else 2048

    @property
    def prints_demanded_tokens(self) -> bool:
        """What it calls "GPU KV cache size" depends on the longest length since 0.21, and counts blocks before."""
        return self.version >= (0, 21)

    @property
    def state_blocks(self) -> int:
        """Blocks of a state per sequence: a second one where prefixes are cached in whole blocks ("align").

        Source: `v1/kv_cache_interface.py` (`MambaSpec`).
        """
        return 2 if self.version >= (0, 20) else 1

    def batch(self, total_bytes: int, *, ampere: bool = False) -> tuple[int, int]:
        """The defaults of `max_num_batched_tokens` and `max_num_seqs` on a GPU of a size.

        Source: `engine/arg_utils.py` (`get_batch_defaults`); the first generation had 256 sequences everywhere.
        """
        gib = total_bytes / 2**30
        if self.first_generation or self.version < (0, 8):
            return 2048, 256
        if gib >= 160 and self.version >= (0, 20):
            return 16384, 1024
        return (8192, 1024) if gib >= 70 and not ampere else (2048, 256)

    def graph_sizes(self, max_num_seqs: int, tokens_per_step: int = 1) -> int:
        """How many batch sizes graphs are captured for. Source: `config/vllm.py` (`_set_cudagraph_sizes`).

        Who guesses ahead decodes several tokens of a sequence in a step.

        Versions that logged 67 sizes went on in steps of eight beyond 256.
        """
        return _graph_sizes(min(max_num_seqs * tokens_per_step * 2, 512), 16 if self.version >= (0, 12) else 8)


@cache
def _graph_sizes(largest: int, step: int) -> int:
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, largest + 1, step)]
    return sum(1 for size in sizes if size <= largest)


NEWEST_ENGINE = Engine()


def engine_of(version: str) -> Engine:
    """Read a version such as `0.33.0`. Raises `Malformed` for one without a first and a second number."""
    found = re.match(r"v?(\d+)\.(\d+)", version)
    if found is None:
        raise Malformed(f"vllm_version must be like 0.33.0, not {version!r}", field="vllm_version")
    numbers = (int(found[1]), int(found[2]))
    return Engine(version=numbers, first_generation=numbers < (0, 8) or "(V0)" in version)
