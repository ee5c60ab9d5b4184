"""Divisions that vLLM refuses, as users met them, and divisions that it takes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.inference.planner.architectures import model_facts
from libs.inference.planner.facts import ModelFacts
from libs.inference.planner.rules import refusals
from libs.inference.planner.split import Parallel
from tests.unit.inference.planner.published import config, facts


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        (
            "Qwen/Qwen2-57B-A14B-Instruct",
            8,
            "Total number of attention heads (28) must be divisible by tensor parallel size (8).",
        ),
        (
            "meta-llama/Llama-2-13b-hf",
            3,
            "Total number of attention heads (40) must be divisible by tensor parallel size (3).",
        ),
        (
            "Qwen/Qwen3-30B-A3B-FP8",
            4,
            "The output_size of gate's and up's weight = 192 is not divisible by weight quantization block_n = 128.",
        ),
        (
            "deepseek-ai/DeepSeek-V3",
            32,
            "The output_size of gate's and up's weight = 64 is not divisible by weight quantization block_n = 128.",
        ),
    ],
)
def test_a_division_is_refused_in_the_words_of_the_engine(name: str, tensor: int, message: str):
    assert message in [refusal.message for refusal in refusals(facts(name), Parallel(tensor=tensor))]


@pytest.mark.parametrize(
    ("name", "parallel"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", Parallel(tensor=16)),
        ("Qwen/Qwen3-30B-A3B", Parallel(tensor=8)),
        ("openai/gpt-oss-120b", Parallel(tensor=4)),
        ("zai-org/GLM-5-FP8", Parallel(tensor=8)),
        ("deepseek-ai/DeepSeek-V3", Parallel(tensor=8, pipeline=4)),
        ("Qwen/Qwen3-30B-A3B-FP8", Parallel(tensor=4, expert_parallel=True)),
    ],
)
def test_a_division_that_users_run_is_taken(name: str, parallel: Parallel):
    assert refusals(facts(name), parallel) == []


def _gptq_of(name: str) -> ModelFacts:
    return model_facts(config(name, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128}))


def test_experts_narrower_than_a_group_are_refused():
    found = refusals(_gptq_of("Qwen/Qwen3-235B-A22B"), Parallel(tensor=8))

    assert "quantisation_group" in [refusal.code for refusal in found]
    assert refusals(_gptq_of("Qwen/Qwen3-235B-A22B"), Parallel(tensor=4)) == []


def test_an_unknown_architecture_is_not_trusted_with_a_pipeline():
    unknown = model_facts(config("meta-llama/Llama-3.1-8B-Instruct", architectures=["NewForCausalLM"]))

    assert [refusal.code for refusal in refusals(unknown, Parallel(pipeline=2))] == ["pipeline_unsupported"]


@given(st.sampled_from(["meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen3-30B-A3B-FP8", "google/gemma-3-1b-it"]))
def test_one_gpu_is_never_refused(name: str):
    assert refusals(facts(name), Parallel()) == []


@given(st.integers(1, 64))
def test_what_is_taken_divides_the_heads(tensor: int):
    llama = facts("meta-llama/Llama-3.1-8B-Instruct")

    assert bool(refusals(llama, Parallel(tensor=tensor))) == (32 % tensor != 0)
