"""The program that stands for vLLM where there is no GPU: as a process, the way an agent starts it."""

import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from libs.common.errors import Unavailable
from libs.inference.vllm_metrics import told_cache
from services.vllm_orchestrator.engine_pages_http import HttpEnginePages
from tests.engine_lines import ON_CPU, ON_GPU
from tests.fake_engine import fake_vllm
from tools.free_ports import free_ports

RECORDED = Path(__file__).parents[2] / "data" / "engines"


@contextmanager
def started(program: Path, *arguments: str, **environment: str) -> Iterator[tuple[str, list[str]]]:
    """Where it listens, and what it has written until it did."""
    (port,) = free_ports(1)
    command = [program, "serve", "m", "--host", "127.0.0.1", "--port", str(port), *arguments]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        said = []
        while "Application startup complete" not in "".join(said[-1:]):
            said.append(process.stdout.readline())
            assert said[-1], said
        yield f"http://127.0.0.1:{port}", said
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


def test_it_starts_as_much_faster_as_it_is_told(tmp_path):
    began = time.monotonic()
    with started(fake_vllm(tmp_path, speed=100)):
        took = time.monotonic() - began
    assert sum(line.seconds for line in ON_CPU) / 100 < took < sum(line.seconds for line in ON_CPU) / 2


def test_it_writes_a_gpus_lines_where_it_is_told_which_to_use(tmp_path):
    with started(fake_vllm(tmp_path), CUDA_VISIBLE_DEVICES="0") as (_, said):
        places = [line.place for line in ON_GPU]
    assert [place for place in places if any(f"[{place}]" in line for line in said)] == places


def test_it_counts_what_it_answered(tmp_path):
    with started(fake_vllm(tmp_path)) as (url, _), httpx.Client(base_url=url, trust_env=False) as client:
        answer = client.post("/v1/chat/completions", json={"model": "m", "messages": [], "max_tokens": 7})
        metrics = client.get("/metrics").text

    assert answer.json()["usage"]["completion_tokens"] == 7
    assert 'vllm:generation_tokens_total{engine="0",model_name="m"} 7.0' in metrics
    assert 'finished_reason="stop",model_name="m"} 1.0' in metrics


def test_it_tells_the_blocks_that_its_log_tells_as_tokens(tmp_path):
    with started(fake_vllm(tmp_path), CUDA_VISIBLE_DEVICES="0") as (url, said):
        told = told_cache(httpx.get(f"{url}/metrics", trust_env=False).text)

    assert told is not None
    tokens = re.search(r"GPU KV cache size: ([\d,]+) tokens", "".join(said))
    assert tokens is not None
    assert told.blocks == int(tokens[1].replace(",", "")) // 16
    assert (told.block_tokens, told.utilization) == (16, 0.92)


async def test_its_metrics_are_read_until_it_is_gone(tmp_path):
    async with httpx.AsyncClient(trust_env=False) as client:
        pages = HttpEnginePages(client)
        with started(fake_vllm(tmp_path)) as (url, _):
            assert told_cache(await pages.metrics(url)) is not None
            with pytest.raises(Unavailable, match="404"):
                await pages.metrics(f"{url}/v1/models")
        with pytest.raises(Unavailable, match="does not answer"):
            await pages.metrics(url)


def test_an_unknown_flag_ends_it_as_it_ends_vllm(tmp_path):
    done = subprocess.run(
        [fake_vllm(tmp_path), "serve", "m", "--no-such-flag"], env={}, capture_output=True, text=True, check=False
    )
    recorded = (RECORDED / "unknown_argument.log").read_text().splitlines()
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, recorded[-1])
