"""What a log tells of a start's memory, in the words of several versions of vLLM."""

from dataclasses import replace
from pathlib import Path

import pytest

from libs.inference.planner.devices import Gpu
from libs.inference.planner.memory import GIB, budget_of
from libs.inference.planner.observed import measured_start
from libs.inference.planner.versions import Engine
from libs.inference.vllm_log import LoggedStart, logged_start
from tests.engine_lines import ON_GPU
from tests.unit.inference.planner.published import facts

RECORDED = Path(__file__).parents[2] / "data" / "engines" / "started.log"
ANY = {"model": "m", "device": "GPU", "cache_gib": 37.99, "tokens": 1, "max_model_len": 1, "concurrency": 1.0}
LLAMA = facts("meta-llama/Llama-3.1-8B-Instruct")
CARD = Gpu(uuid="GPU-1", node_id="a", total=24 * GIB, free=24 * GIB, name="NVIDIA L4")
NEW = """
(EngineCore_DP0 pid=7) INFO [core.py:77] Initializing a V1 LLM engine (v0.33.0) with config: model='m'
(Worker_TP0 pid=8) INFO [gpu_model_runner.py:2392] Model loading took 7.4800 GiB memory and 3.2 seconds
(Worker_TP1 pid=9) INFO [gpu_model_runner.py:2392] Model loading took 7.5000 GiB memory and 3.3 seconds
(Worker_TP0 pid=8) INFO [gpu_worker.py:330] Estimated CUDA graph memory: 0.50 GiB total
(Worker_TP0 pid=8) INFO [gpu_worker.py:298] Available KV cache memory: 10.25 GiB
(Worker_TP1 pid=9) INFO [gpu_worker.py:298] Available KV cache memory: 10.00 GiB
(EngineCore_DP0 pid=7) INFO [kv_cache_utils.py:864] GPU KV cache size: 163,840 tokens
(Worker_TP0 pid=8) INFO [gpu_model_runner.py:3118] Graph capturing finished in 12 secs, took 0.61 GiB
"""
OLD = """
INFO model_runner.py:1097] Loading model weights took 14.9888 GB
INFO worker.py:241] Memory profiling takes 5.10 seconds the current vLLM instance can use total_gpu_memory (23.58GiB) x
gpu_memory_utilization (0.90) = 21.22GiB; model weights take 14.99GiB; non_torch_memory takes 0.35GiB; PyTorch
activation peak memory takes 2.06GiB; the rest of the memory reserved for KV Cache is 3.81GiB.
"""


def test_of_several_ranks_the_one_that_needs_most_counts():
    assert logged_start(NEW) == LoggedStart(
        weights=int(7.5 * GIB), graphs=GIB // 2, available=10 * GIB, activation=None, non_torch=None, version="0.33.0"
    )


def test_older_engines_tell_every_term():
    found = logged_start(" ".join(OLD.split()))
    assert (found.weights, found.activation, found.non_torch) == (int(14.99 * GIB), int(2.06 * GIB), int(0.35 * GIB))
    assert found.available == int(3.81 * GIB)


def test_what_a_real_start_on_a_processor_logged_is_read():
    assert logged_start(RECORDED.read_text(encoding="utf-8")) == LoggedStart(available=GIB, version="0.32.0")


def test_what_was_published_of_gpus_is_read():
    found = logged_start("\n".join(line.text.format_map(ANY) for line in ON_GPU))
    assert (found.weights, found.graphs) == (int(12.66 * GIB), int(0.44 * GIB))
    assert found.available == int(37.99 * GIB)


def test_what_was_captured_counts_where_nothing_was_estimated():
    assert logged_start("Graph capturing finished in 12.5 secs, took 0.61 GiB").graphs == int(0.61 * GIB)


@pytest.mark.parametrize("text", ["", "Application startup complete.", "Model loading took none GiB"])
def test_a_log_that_tells_nothing_says_nothing(text: str):
    assert logged_start(text) == LoggedStart()


def test_the_peak_of_a_step_is_what_the_others_leave_of_the_budget():
    logged = LoggedStart(weights=15 * GIB, available=3 * GIB, graphs=GIB // 2)
    found = measured_start(LLAMA, ["m", "--max-num-seqs", "256"], Engine(), [CARD], logged)
    assert found is not None
    assert found.kind.gpu == "NVIDIA L4"
    beside = found.predicted.non_torch or 0
    assert found.measured.activation == budget_of(24 * GIB, 0.92) - 18 * GIB - GIB // 2 - beside
    assert (found.measured.graphs, found.measured.non_torch) == (GIB // 2, None)


def test_the_options_of_the_command_are_those_of_the_prediction():
    logged = LoggedStart(graphs=1)
    few, many, eager = (
        measured_start(LLAMA, ["m", "--max-num-seqs", *words], Engine(), [CARD], logged)
        for words in (["32"], ["256"], ["256", "--enforce-eager"])
    )
    assert few is not None
    assert many is not None
    assert eager is not None
    assert (few.predicted.activation or 0) < (many.predicted.activation or 0)
    assert eager.predicted.graphs == 0


def test_a_pipeline_and_a_log_without_estimated_terms_teach_nothing():
    assert measured_start(LLAMA, ["m"], Engine(), [CARD], LoggedStart(weights=15 * GIB)) is None
    assert measured_start(LLAMA, ["m"], Engine(), [], LoggedStart(graphs=1)) is None
    pipeline = ["m", "--pipeline-parallel-size", "2"]
    assert measured_start(LLAMA, pipeline, Engine(), [CARD, replace(CARD, uuid="2")], LoggedStart(graphs=1)) is None
