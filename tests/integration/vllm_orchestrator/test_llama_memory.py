"""What llama.cpp really takes of the RAM, beside what is planned for it from its file's header."""

import json
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil

from libs.inference.planner.gguf import gguf_header
from libs.inference.planner.llama import gguf_facts, llama_need
from services.node_agent import tiny_model

SLOTS, CONTEXT = 4, 4096


def test_llama_cpp_takes_no_more_than_was_planned_and_its_cache_is_exact(tmp_path: Path):
    model, report = tmp_path / "tiny.gguf", tmp_path / "report.json"
    tiny_model.main(model)
    need = llama_need(gguf_facts(gguf_header(model.read_bytes(), "tiny")), context=CONTEXT, slots=SLOTS)
    assert need.kv_cache == SLOTS * CONTEXT * 2 * (2 * 32 + 2 * 32) * 2  # layers x (keys + values) x 16 bits

    command = [sys.executable, "-m", "services.node_agent.llama_server", "--report", str(report), "--fingerprint", "f"]
    command += ["--model", str(model), "--name", "tiny", "--slots", str(SLOTS), "--context", str(CONTEXT)]
    process = subprocess.Popen([*command, "--threads", "1", "--device", "cpu"], stderr=subprocess.DEVNULL)
    try:
        url = _url(process, report)
        for place in range(3 * SLOTS):
            asked = {"prompt": f"{place} node " * 300, "n_predict": 1, "id_slot": place % SLOTS}
            httpx.post(f"{url}/completion", json=asked, timeout=60).raise_for_status()
        taken = psutil.Process(process.pid).memory_info().rss
    finally:
        process.terminate()
        process.wait(20)
    assert need.weights < taken < need.total


def _url(process: subprocess.Popen[bytes], report: Path) -> str:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        assert process.poll() is None
        told = json.loads(report.read_text()) if report.exists() else {}
        if told.get("url"):
            return str(told["url"])
        time.sleep(0.02)
    raise AssertionError("it did not serve")
