"""With what an engine is started."""

from dataclasses import dataclass

from libs.inference.planner.calibration import NONE, Corrections
from libs.inference.planner.drafts import draft_tokens
from libs.inference.planner.facts import ModelFacts
from libs.inference.planner.kv_cache import Demand
from libs.inference.planner.split import Parallel
from libs.inference.planner.versions import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the user says of the start; None is left to the engine's defaults."""

    gpu_memory_utilization: float | None = None
    max_model_len: int | None = None
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    kv_cache_dtype: str = "auto"
    enforce_eager: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The values an engine of this version runs with. `on_processor`: without a GPU and its kernels."""

    engine: Engine
    gpu_memory_utilization: float
    max_model_len: int
    max_num_batched_tokens: int
    max_num_seqs: int
    kv_cache_dtype: str
    enforce_eager: bool
    batched_tokens_given: bool
    draft_tokens: int = 0
    on_processor: bool = False
    corrections: Corrections = NONE

    def demand(self, parallel: Parallel) -> Demand:
        """What a request may take of the cache.

        Source: `v1/kv_cache_interface.py`: a window also holds the tokens of the batches under way, which are two, or
        one more than there are stages. Every token guessed ahead has a state of its own (`MambaSpec`).
        """
        batches = parallel.pipeline + 1 if parallel.pipeline > 1 else 2
        flying = (1 if self.engine.version < (0, 20) else batches) * self.max_num_batched_tokens
        states = self.engine.state_blocks + self.draft_tokens
        return Demand(max_model_len=self.max_model_len, tokens_in_flight=flying, state_blocks=states)


def options_of(facts: ModelFacts, asked: Asked, engine: Engine, total_bytes: int, *, ampere: bool = False) -> Options:
    """Fill in an engine's defaults for a GPU of a size."""
    told = facts.cache_type if engine.heeds_cache_type and asked.kv_cache_dtype == "auto" else ""
    batched, sequences = engine.batch(total_bytes, ampere=ampere)
    return Options(
        engine=engine,
        gpu_memory_utilization=asked.gpu_memory_utilization or engine.utilization,
        max_model_len=asked.max_model_len or facts.max_position,
        max_num_batched_tokens=asked.max_num_batched_tokens or batched,
        max_num_seqs=asked.max_num_seqs or sequences,
        kv_cache_dtype=told or asked.kv_cache_dtype,
        enforce_eager=asked.enforce_eager,
        draft_tokens=draft_tokens(facts),
        batched_tokens_given=asked.max_num_batched_tokens is not None,
    )
