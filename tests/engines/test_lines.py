"""The program that stands for vLLM says what vLLM says: held against the real one, its metrics and its source."""

import re
from collections.abc import Iterable
from pathlib import Path

import httpx
import pytest

from libs.inference.vllm_log import LoggedStart, logged_start
from libs.inference.vllm_metrics import told_cache
from tests.engine_lines import FAULTS, ON_CPU, ON_GPU, RECORDED, Line
from tests.engines.conftest import ENVIRONMENT, PATIENCE
from tests.fake_engine import metrics

pytestmark = pytest.mark.timeout(2 * PATIENCE)

VARYING = re.compile(r"\{[^}]*\}|cuda:\d+|\d[\d.,/]*")
SHORTEST = 8


@pytest.fixture(scope="module")
def source() -> str:
    """All of vLLM's, with texts that go over several lines joined."""
    (package,) = ENVIRONMENT.glob("lib/python*/site-packages/vllm")
    found = "".join(path.read_text(encoding="utf-8") for path in sorted(Path(package).rglob("*.py")))
    return re.sub(r'"\s*\n\s*f?"', "", found)


def words_of(text: str) -> Iterable[str]:
    """What of it is in every log."""
    return (part for part in VARYING.split(text) if len(part.strip()) >= SHORTEST)


def shape_of(line: Line) -> re.Pattern[str]:
    text = ".+".join(map(re.escape, VARYING.split(line.text)))
    place = re.escape(line.place)
    return re.compile(rf"^\({line.process} pid=\d+\) INFO [\d-]+ [\d:]+ \[{place}\] {text}$", re.MULTILINE)


@pytest.mark.parametrize("line", ON_CPU, ids=lambda line: line.place)
def test_a_processors_line_is_in_the_real_log(deploying, served, line: Line):
    assert shape_of(line).search(deploying.log("tiny"))


def test_the_real_log_has_them_in_that_order(deploying, served):
    log = deploying.log("tiny")
    places = [found.start() for line in ON_CPU if (found := shape_of(line).search(log))]
    assert places == sorted(places)


def test_what_calibration_reads_of_a_log_is_in_the_real_one(deploying, served):
    assert logged_start(deploying.log("tiny")) == LoggedStart(available=2**30, version="0.32.0")


@pytest.mark.parametrize("line", ON_GPU, ids=lambda line: line.place)
def test_a_gpus_line_is_published_and_in_the_source(source: str, line: Line):
    assert line.source.startswith("https://")
    assert [words for words in words_of(line.text) if words not in source] == []


@pytest.mark.parametrize("kind", FAULTS)
def test_a_failure_is_published_or_recorded(source: str, kind: str):
    fault = FAULTS[kind]
    assert fault.source == RECORDED or fault.source.startswith("https://")
    raised_by_vllm = fault.words.removeprefix("ValueError: ") if fault.words.startswith("ValueError") else ""
    assert [words for words in words_of(raised_by_vllm) if words not in source] == []


def test_its_metrics_have_the_real_ones_names_and_labels(served):
    real = httpx.get(f"{served['parts'][0]['url']}/metrics", trust_env=False).text
    fake = metrics("tiny", prompt_tokens=1, generation_tokens=1, running=1, finished=1)

    def named(text: str) -> set[str]:
        return {line.rsplit(" ", 1)[0] for line in text.splitlines() if line.startswith("vllm:")}

    assert named(fake) <= named(real)


def test_what_it_says_of_its_cache_is_what_the_real_one_says(served):
    real = httpx.get(f"{served['parts'][0]['url']}/metrics", trust_env=False).text
    cache = {"block_size": 128, "gpu_memory_utilization": 0.92, "num_gpu_blocks": 2**30 // 1024 // 128}
    fake = metrics("tiny", prompt_tokens=1, generation_tokens=1, running=1, finished=1, cache=cache)

    assert told_cache(real) == told_cache(fake)


@pytest.mark.parametrize(
    "words",
    [
        "must be divisible by dcp_size=",
        "Decode context parallelism for GQA/MQA requires `--tensor-parallel-size` (",
        ") to be greater than the model's total number of KV heads (",
        ") exceeds the maximum supported value (",
        "The model's number of query heads per KV head (",
        "Number of experts in the model must be greater than 0 when expert parallelism is enabled.",
        "enable_expert_parallel must be True to use EPLB.",
        "EPLB requires tensor, prefill-context, or data parallelism, but got TP=",
        "EPLB currently only supports even distribution of experts across ranks. Got ",
        "num_redundant_experts is set to ",
        "Unsupported speculative method: '",
        "num_speculative_tokens must be provided with speculative model unless the draft model config contains an ",
        "Target and draft model should have the same vocabulary size. Target model vocab_size=",
        "cannot be other value than 1 or target model tensor_parallel_size",
        "Currently, 'draft_tensor_parallel_size' and 'tensor_parallel_size' must be the same. Got ",
        "Model does not support EAGLE3 interface",
        "Consider increasing max_num_batched_tokens or decreasing num_speculative_tokens",
        "Specified KV sharing target layer for ",
        "is not a valid Attention layer in the model.",
        "Pipeline parallelism is not supported for this model. Supported models implement the `SupportsPP` interface.",
    ],
)
def test_a_refusal_is_told_in_the_words_of_the_source(source: str, words: str):
    assert words in source
