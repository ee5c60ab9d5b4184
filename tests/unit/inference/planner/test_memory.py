"""The terms of a start, against what engines logged."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.errors import Malformed
from libs.inference.planner.activations import activation_bytes, profiled_tokens, sampler_bytes
from libs.inference.planner.memory import GIB, Start, Verdict, graph_bytes, start, whole
from libs.inference.planner.options import Asked, Options, options_of
from libs.inference.planner.sizes import Sizes
from libs.inference.planner.split import Parallel
from libs.inference.planner.versions import engine_of
from tests.unit.inference.planner.published import facts

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


def _options(name: str, version: str, total_gib: float = 80.0, **asked: object) -> Options:
    return options_of(facts(name), Asked(**asked), engine_of(version), int(total_gib * GIB))  # type: ignore[arg-type]


def _start(options: Options, total_gib: float) -> Start:
    return start(Sizes(facts(LLAMA)), Parallel(), options, [whole(int(total_gib * GIB))])


@pytest.mark.parametrize(
    ("name", "version", "length", "logged"),
    [
        (LLAMA, "0.6.0 (V0)", 20000, 2.06),
        (LLAMA, "0.6.0 (V0)", 29000, 2.98),
        (LLAMA, "0.6.5 (V0)", 131072, 1.19),
        ("Qwen/Qwen2.5-0.5B-Instruct", "0.6.6 (V0)", 32768, 1.44),
        (LLAMA, "0.11.0", 16000, 4.76),
        ("openai/gpt-oss-20b", "0.11.0", 16000, 7.38),
    ],
)
def test_the_peak_is_what_an_engine_logged(name: str, version: str, length: int, logged: float):
    peak = activation_bytes(facts(name), Parallel(), _options(name, version, max_model_len=length))

    assert peak / GIB == pytest.approx(logged, rel=0.03, abs=0.005)  # logs have two decimals


@pytest.mark.parametrize("sorting", ["0.8.5", "0.10.1", "0.11.2", "0.16.0"])
@pytest.mark.parametrize("masking", ["0.17.0", "0.19.0", "0.21.0", "0.33.0"])
def test_a_kernel_that_masks_words_takes_half_of_what_sorting_them_takes(sorting: str, masking: str):
    more, less = (activation_bytes(facts(LLAMA), Parallel(), _options(LLAMA, each)) for each in (sorting, masking))

    assert 0.4 < less / more < 0.5


def test_a_few_sequences_are_sorted_whatever_the_version():
    few, more = (
        sampler_bytes(facts(LLAMA), _options(LLAMA, "0.24.0", max_num_seqs=count), tokens=0) / count for count in (7, 8)
    )

    assert few > 2 * more


def test_a_processor_sorts_words_whatever_the_version():
    options = _options(LLAMA, "0.32.0")
    gpu, processor = (
        sampler_bytes(facts(LLAMA), replace(options, on_processor=on_processor), tokens=0)
        for on_processor in (False, True)
    )

    assert processor > 2 * gpu


@pytest.mark.parametrize(
    ("name", "tokens"),
    [(LLAMA, 2048), ("Qwen/Qwen2.5-VL-72B-Instruct", 65536), ("deepseek-ai/DeepSeek-V3", 65536)],
)
def test_the_first_generation_ran_long_lengths_in_chunks_but_of_images_and_latents(name: str, tokens: int):
    options = _options(name, "0.8.5 (V0)", max_model_len=65536)

    assert profiled_tokens(facts(name), options) == tokens


def test_fewer_sequences_make_the_sampler_smaller():
    options = _options(LLAMA, "0.33.0", max_num_batched_tokens=512)
    few, many = (
        activation_bytes(facts(LLAMA), Parallel(), replace(options, max_num_seqs=count)) for count in (32, 512)
    )

    assert few < many / 2


def test_only_the_last_stage_chooses_tokens():
    options, parallel = _options(LLAMA, "0.33.0"), Parallel(pipeline=2)
    first, last = (activation_bytes(facts(LLAMA), parallel, options, stage) for stage in (0, 1))

    assert first < last


@pytest.mark.parametrize(("name", "logged"), [("openai/gpt-oss-20b", 0.39), ("google/gemma-3-1b-it", 0.44)])
def test_graphs_take_what_an_engine_logged(name: str, logged: float):
    sizes = _options(name, "0.11.0").engine.graph_sizes(1024)
    taken = graph_bytes(facts(name), _options(name, "0.11.0"))

    assert taken / GIB * 67 / sizes == pytest.approx(logged, rel=0.05)


def test_an_eager_engine_has_no_graphs():
    assert graph_bytes(facts(LLAMA), _options(LLAMA, "0.33.0", enforce_eager=True)) == 0


@pytest.mark.parametrize(
    ("total_gib", "length", "verdict"),
    [
        (80.0, 8192, Verdict.FITS),
        (24.0, 131072, Verdict.TOO_LONG),
        (16.5, 8192, Verdict.NO_CACHE),
        (12.0, 8192, Verdict.WEIGHTS),
    ],
)
def test_a_start_ends_where_memory_ends(total_gib: float, length: int, verdict: Verdict):
    options = _options(LLAMA, "0.33.0", total_gib, max_model_len=length)

    assert _start(options, total_gib).verdict is verdict


@given(st.integers(1, 160), st.integers(1, 40), st.integers(256, 131072))
def test_what_fits_also_fits_on_a_larger_gpu(total_gib: int, more: int, length: int):
    options = _options(LLAMA, "0.33.0", max_model_len=length)
    small, large = (_start(options, size).verdict for size in (total_gib, total_gib + more))

    assert small is not Verdict.FITS or large is Verdict.FITS


@given(st.integers(16, 160), st.integers(256, 131072))
def test_what_fits_holds_at_least_one_request(total_gib: int, length: int):
    found = _start(_options(LLAMA, "0.33.0", max_model_len=length), total_gib)

    assert found.verdict is not Verdict.FITS or found.max_concurrency >= 1


@pytest.mark.parametrize("version", ["", "newest", "v"])
def test_a_version_without_numbers_is_refused(version: str):
    with pytest.raises(Malformed, match="vllm_version must be like"):
        engine_of(version)
