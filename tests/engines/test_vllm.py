"""A real vLLM, deployed over REST: what a user with nothing but processors is promised.

Each start takes a minute of two processors, so tests share one where they can, in the order in which they stand.
Those of `test_lines.py` come before them.
"""

import os
import re
import signal
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.deploying import Deploying, runs
from tests.engines.conftest import PATIENCE
from tests.mesh_process import MeshProcess

pytestmark = pytest.mark.timeout(2 * PATIENCE)

EAGER = {"enforce_eager": True, "max_model_len": 512, "max_num_seqs": 8}


def chat(url: str, words: str = "the quick brown fox", tokens: int = 5) -> dict[str, Any]:
    messages = [{"role": "user", "content": words}]
    asked = {"model": "tiny", "messages": messages, "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
    answer = httpx.post(f"{url}/v1/chat/completions", json=asked, timeout=120, trust_env=False)
    assert answer.status_code == httpx.codes.OK, answer.text
    return answer.json()


def head_of(view: dict[str, Any]) -> dict[str, Any]:
    return next(part for part in view["parts"] if part["rank"] == 0)


def processes_of(pid: int) -> list[int]:
    """Of its session: vLLM's processes are in the one that the agent began."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == pid and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def end(deploying: Deploying, name: str) -> None:
    """Delete it, and see that it left no process and no reservation."""
    heads = [part["pid"] for part in deploying.until(lambda told: told["parts"], name)["parts"] if part["pid"]]
    before = [pid for head in heads for pid in processes_of(head)]
    assert set(heads) <= set(before)
    assert deploying.call("DELETE", f"/instances/{name}").status_code == httpx.codes.ACCEPTED
    deploying.until_gone(name)
    assert [pid for pid in before if runs(pid)] == []
    assert [claim for claim in deploying.claims() if f"instance {name}," in claim["purpose"]] == []


def test_a_deployed_model_answers(served):
    answer = chat(head_of(served)["url"])

    assert answer["usage"]["completion_tokens"] == 5
    assert answer["model"] == "tiny"


def test_its_ram_is_claimed_for_its_process(deploying, served):
    part = head_of(served)
    (claim,) = deploying.claims()

    assert (claim["state"], claim["pid"], claim["ram_mb"]) == ("committed", part["pid"], part["ram_mb"])
    used = sum(psutil.Process(pid).memory_full_info().pss for pid in processes_of(part["pid"]))
    assert 0.5 * claim["ram_mb"] < used / 2**20 < claim["ram_mb"]


def test_its_cache_is_what_was_planned(deploying, served):
    found = re.search(r"CPU KV cache size: ([\d,]+) tokens", deploying.log("tiny"))
    assert found is not None
    asked = {name: served["request"][name] for name in ("model_name", "max_model_len", "max_num_seqs", "device")}
    planned = deploying.call("POST", "/plan", json=asked)
    assert planned.json()["kv_cache_tokens"] == int(found[1].replace(",", ""))


def test_work_goes_through_the_queue_to_it(deploying, served):
    messages = [{"role": "user", "content": "the quick brown fox"}]
    item = deploying.completed("w-1", "tiny", {"messages": messages, "max_tokens": 4, "ignore_eos": True})

    assert item["result"]["usage"]["completion_tokens"] == 4, item


def test_deleting_it_leaves_no_process_and_no_reservation(deploying, served):
    end(deploying, "tiny")


def test_tokens_that_are_guessed_ahead_are_accepted(deploying):
    guessing = {"method": "ngram", "num_speculative_tokens": 3}
    deploying.deploy(instance_name="guessing", speculative_config=guessing, **EAGER)
    url = head_of(deploying.until_ready("guessing"))["url"]
    chat(url, words="one two three " * 20, tokens=64)

    told = httpx.get(f"{url}/metrics", timeout=30, trust_env=False).text
    accepted = re.search(r"^vllm:spec_decode_num_accepted_tokens_total\{.*\} (\S+)$", told, re.MULTILINE)
    assert accepted is not None
    assert float(accepted[1]) > 0
    end(deploying, "guessing")


def test_ranks_that_divide_every_layer_serve_and_one_that_is_killed_brings_it_back(deploying):
    deploying.deploy(instance_name="ranks", tensor_parallel_size=2, **EAGER)
    head = head_of(deploying.until_ready("ranks"))
    assert chat(head["url"])["usage"]["completion_tokens"] == 5
    assert len(processes_of(head["pid"])) >= 4

    before = processes_of(head["pid"])
    os.kill(head["pid"], signal.SIGKILL)
    again = deploying.until(lambda told: told["state"] == "READY" and told["generation"] == 2, "ranks")
    assert any("killed" in event for event in deploying.events("ranks"))
    assert [pid for pid in before if runs(pid)] == []
    assert chat(head_of(again)["url"])["usage"]["completion_tokens"] == 5
    end(deploying, "ranks")


def test_a_wrong_flag_is_told_and_not_tried_again(deploying, more_arguments: Path):
    more_arguments.write_text("--no-such-flag")
    try:
        deploying.deploy(instance_name="wrong", **EAGER)
        failed = deploying.until(lambda told: told["state"] == "FAILED", "wrong")
    finally:
        more_arguments.write_text("")

    assert "vLLM does not know an argument: error: unrecognized arguments: --no-such-flag" in failed["problem"]
    assert (failed["generation"], failed["parts"]) == (1, [])
    deploying.call("DELETE", "/instances/wrong")
    deploying.until_gone("wrong")
    assert deploying.claims() == []


def test_stages_on_one_machine_serve_as_one(deploying):
    deploying.deploy(instance_name="halves", pipeline_parallel_size=2, max_model_len=512, max_num_seqs=8)
    ready = deploying.until_ready("halves")

    assert len(ready["parts"]) == 1
    assert chat(head_of(ready)["url"])["usage"]["completion_tokens"] == 5
    end(deploying, "halves")


def test_stages_on_two_machines_serve_as_one(deploying, second_node: MeshProcess):
    """Two agents in two network namespaces: each has addresses of its own, and loopback leads to itself alone."""
    deploying.deploy(instance_name="stages", pipeline_parallel_size=2, max_model_len=512, max_num_seqs=8)
    ready = deploying.until_ready("stages")

    assert {part["node_id"] for part in ready["parts"]} == {"first", "second"}
    assert chat(head_of(ready)["url"])["usage"]["completion_tokens"] == 5
    end(deploying, "stages")
