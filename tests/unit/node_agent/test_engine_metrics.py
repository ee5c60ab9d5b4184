"""How many requests an engine has in hand, from its metrics."""

from pathlib import Path

from services.node_agent.engine_metrics import requests_in_hand

RECORDED = Path(__file__).parents[2] / "data" / "engines" / "metrics.txt"
VLLM = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 2.0
vllm:num_requests_running{engine="1",model_name="m"} 1.0
vllm:num_requests_waiting{engine="0",model_name="m"} 4.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 4.0
"""
LLAMA = "# TYPE llamacpp:requests_processing gauge\nllamacpp:requests_processing 1\nllamacpp:requests_deferred 0\n"


def test_running_and_waiting_requests_of_all_engines_count():
    assert requests_in_hand(VLLM) == 7
    assert requests_in_hand(LLAMA) == 1


def test_what_a_real_vllm_told_when_it_was_idle_is_nothing_in_hand():
    assert requests_in_hand(RECORDED.read_text(encoding="utf-8")) == 0


def test_an_engine_that_does_not_tell_is_not_taken_for_idle():
    assert requests_in_hand("process_cpu_seconds_total 3.0\n") is None
