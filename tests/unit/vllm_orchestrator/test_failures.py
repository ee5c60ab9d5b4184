"""Why an engine failed, read from logs that vLLM 0.32 wrote: as the agent tells their ends, and as they are."""

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path

import pytest

from libs.common.contracts.engine_hosting import EngineProgram, HostedEngine
from libs.common.contracts.node_registry import EngineState
from libs.inference.planner.facts import ModelFacts
from libs.inference.planner.rules import refusals
from libs.inference.planner.speculation import Wanted, with_draft
from libs.inference.planner.split import Manner, Parallel
from services.node_agent.hosted_process import LAST_WORDS
from services.node_agent.last_words import telling
from services.node_agent.ray_status import Seen, incomplete
from services.vllm_orchestrator.failures import Failure, Remedy, classify
from tests.engine_lines import FAULTS, ON_CPU, ON_GPU, Line
from tests.unit.inference.planner.published import facts

RECORDED = Path(__file__).parents[2] / "data" / "engines"
NOW = datetime(2030, 1, 1, tzinfo=UTC)


def why(words: str, exit_code: int = 1) -> Failure:
    engine = HostedEngine(
        instance="one",
        generation=1,
        program=EngineProgram.VLLM,
        model_name="m",
        state=EngineState.FAILED,
        started_at=NOW,
        ended_at=NOW,
        exit_code=exit_code,
        reason=f"it ended with exit status {exit_code}",
        last_words=words,
    )
    return classify(engine)


@pytest.mark.parametrize(
    ("log", "kind", "remedy", "said"),
    [
        ("unknown_argument", "bad_flag", Remedy.GIVE_UP, "--no-such-flag"),
        ("context_too_long", "bad_option", Remedy.GIVE_UP, "User-specified max_model_len (999999)"),
        ("heads_not_divisible", "not_supported", Remedy.GIVE_UP, "must be divisible by tensor parallel size (3)"),
        ("no_drafts", "not_supported", Remedy.GIVE_UP, "Unsupported speculative method: 'mtp'"),
        ("no_such_model", "unknown_model", Remedy.GIVE_UP, "no such model"),
        ("hub_out_of_reach", "download", Remedy.LATER, "could not be fetched"),
        ("port_taken", "port_taken", Remedy.LATER, "Address already in use"),
        ("ram_in_use", "ram_in_use", Remedy.ELSEWHERE, "(13.3/17.46 GiB)"),
        ("rank_killed", "killed", Remedy.LATER, "may have run out of RAM"),
        ("eager_pipeline", "crash", Remedy.LATER, "AssertionError"),
    ],
)
def test_what_the_real_one_wrote_says_why(log: str, kind: str, remedy: Remedy, said: str):
    words = telling((RECORDED / f"{log}.log").read_text(encoding="utf-8"), LAST_WORDS)
    found = why(words)

    assert (found.kind, found.remedy) == (kind, remedy)
    assert said in found.sentence


MOE, GEMMA = facts("Qwen/Qwen3-30B-A3B"), facts("google/gemma-3-27b-it")


@pytest.mark.parametrize(
    ("model", "parallel"),
    [
        (facts("meta-llama/Llama-3.1-8B-Instruct"), Parallel(tensor=3)),
        (with_draft(GEMMA, Wanted(method="mtp", num_speculative_tokens=1)), Parallel()),
        (MOE, Parallel(tensor=2, manner=Manner(balanced=True))),
        (MOE, Parallel(tensor=4, expert_parallel=True, manner=Manner(balanced=True, redundant=1))),
        (MOE, Parallel(tensor=2, manner=Manner(context=2))),
        (MOE, Parallel(tensor=8, manner=Manner(context=3))),
    ],
)
def test_what_is_refused_before_a_start_is_given_up_when_an_engine_says_it(model: ModelFacts, parallel: Parallel):
    said = refusals(model, parallel)[0].message

    assert (why(f"ValueError: {said}").kind, why(f"ValueError: {said}").remedy) == ("not_supported", Remedy.GIVE_UP)


@pytest.mark.parametrize(
    ("words", "kind", "remedy"),
    [
        ("Ray is not installed here: there is no ray. Install it …", "no_ray", Remedy.GIVE_UP),
        ("ValueError: Failed to import Ray: None.Please install Ray with `pip install ray`.", "no_ray", Remedy.GIVE_UP),
        (incomplete(Seen(1, 4), 2, 8, 120), "ray_incomplete", Remedy.LATER),
        ("Ray's head at 10.0.0.1:29777 did not answer within 120 s.", "ray_incomplete", Remedy.LATER),
        (
            "ValueError: Cannot provide a placement group requiring 8 GPUs (placement_group_specs=[…]) within 1800 s",
            "ray_placement",
            Remedy.LATER,
        ),
        (
            "RuntimeError: driver node id 5ae3 is not included in a placement group 77f1. Node id -> bundles {}",
            "ray_placement",
            Remedy.LATER,
        ),
    ],
)
def test_over_ray_what_is_lacking_is_told(words: str, kind: str, remedy: Remedy):
    """The agent's words, and those of `v1/executor/ray_utils.py` of vLLM 0.32."""
    found = why(words)

    assert (found.kind, found.remedy) == (kind, remedy)


def test_an_engine_that_was_ended_in_order_says_nothing_that_explains_a_failure():
    words = telling((RECORDED / "started.log").read_text(encoding="utf-8"), LAST_WORDS)
    assert why(words).kind == "crash"


@pytest.mark.parametrize(
    ("kind", "lines"),
    [
        pytest.param(kind, lines, id=f"{kind} {device}")
        for device, lines in (("cpu", ON_CPU), ("gpu", ON_GPU))
        for kind, fault in FAULTS.items()
        if kind != "crash" and fault.stage in [line.stage for line in lines]
    ],
)
def test_a_published_failure_is_told_by_where_it_happened(kind: str, lines: Sequence[Line]):
    fault = FAULTS[kind]
    before = [line.text for line in takewhile(lambda line: line.stage != fault.stage, lines)]
    assert why("\n".join([*before, fault.words])).kind == kind


def test_the_words_that_explain_survive_a_long_traceback():
    long = "\n".join(['  File "/opt/vllm/core.py", line 1, in run', "    raise RuntimeError("] * 2000)
    words = f"Model loading took 12.66 GiB memory\n{FAULTS['oom_at_profiling'].words}\n{long}"
    assert why(words[-LAST_WORDS:]).kind == "crash"
    assert why(telling(words, LAST_WORDS)).kind == "oom_at_profiling"
