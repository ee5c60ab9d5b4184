"""A program with vLLM's command line, log lines, HTTP routes and metrics, and with ways to fail, for what needs a GPU,
speed or numbers.

`fake_vllm(folder)` makes a `vllm` that starts it. How its starts go is written in `folder/vllm.json`: a list with one
word for each start to come, `ok` after the last. It asks for no GPU: where it is told which to use, it writes the lines
of one. Like vLLM's, its scheduler is a process of its own, which lives on when the first one is killed.
"""

import argparse
import atexit
import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType
from typing import Any

from tests.engine_lines import FAULTS, ON_CPU, ON_GPU, SERVED, Line
from tests.fake_program import fake_program, keep, kept, next_start

BAD_FLAG_STATUS = 2
TOKENS_PER_GIB = 1_048_576
"""Of a model with 1 KiB of cache for each token, as the engine suite's is."""

TOKEN_SECONDS = 0.02
FAILURES = {kind: (fault.stage, fault.words) for kind, fault in FAULTS.items()}


def fake_vllm(folder: Path, *starts: str, speed: float | None = None) -> Path:
    """A `vllm` whose starts go so. `speed`: how much faster than a small model's it starts and answers; None: at once.

    Returns its path, for ENGINE_PROGRAMS.
    """
    program = fake_program(folder, "vllm", "tests.fake_engine", starts)
    (folder / "speed.json").write_text(json.dumps(speed))
    return program


def begun(folder: Path) -> list[dict[str, Any]]:
    """Every start of it: its arguments, its environment as far as it matters, its processes, how it was to go."""
    return kept(folder, "vllm")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        """As vLLM says it, whose parser of `serve` calls itself `vllm` then."""
        self.exit(BAD_FLAG_STATUS, f"usage: vllm [-h] [-v]\nvllm: error: {message}\n")


def _arguments(words: list[str]) -> argparse.Namespace:
    parser = _Parser(prog="vllm", allow_abbrev=False)
    parser.add_argument("model")
    parser.add_argument("--host", default="0.0.0.0")  # as vLLM does
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--served-model-name")
    for name in ("revision", "quantization", "dtype", "kv-cache-dtype", "master-addr", "distributed-executor-backend"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--tensor-parallel-size", "-tp", type=int, default=1)
    parser.add_argument("--pipeline-parallel-size", "-pp", type=int, default=1)
    for name in ("nnodes", "node-rank", "master-port"):
        parser.add_argument(f"--{name}", type=int, default=1)
    for name in ("max-model-len", "max-num-seqs", "max-num-batched-tokens", "kv-cache-memory-bytes"):
        parser.add_argument(f"--{name}", type=int, default=1024)
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.92)
    for name in ("enforce-eager", "enable-expert-parallel", "headless"):
        parser.add_argument(f"--{name}", action="store_true")
    return parser.parse_args(words)


class _Engine:
    """One start. `speed` as in `fake_vllm`."""

    def __init__(self, how: str, wanted: argparse.Namespace, speed: float | None) -> None:
        self.how = how
        self.wanted = wanted
        self.core = _scheduler()
        self.prompt_tokens = self.generation_tokens = self.finished = self.running = 0
        self.ponders = float(how.removeprefix("ponder=")) if how.startswith("ponder=") else 0.0
        self._speed = speed
        self._on_gpu = "CUDA_VISIBLE_DEVICES" in os.environ
        gib = 37.99 if self._on_gpu else float(os.environ.get("VLLM_CPU_KVCACHE_SPACE", 4))
        tokens = int(gib * TOKENS_PER_GIB)
        self._facts: Mapping[str, Any] = {
            "model": wanted.model,
            "max_model_len": wanted.max_model_len,
            "cache_gib": gib,
            "device": "GPU" if self._on_gpu else "CPU",
            "tokens": tokens,
            "concurrency": tokens / wanted.max_model_len,
        }

    @property
    def cache(self) -> Mapping[str, object]:
        """Blocks of 16 tokens on a GPU and of 128 on a processor, as vLLM's."""
        size = 16 if self._on_gpu else 128
        blocks = self._facts["tokens"] // size
        return {
            "block_size": size,
            "gpu_memory_utilization": self.wanted.gpu_memory_utilization,
            "num_gpu_blocks": blocks,
        }

    @property
    def name(self) -> str:
        return self.wanted.served_model_name or self.wanted.model

    def come_up(self) -> None:
        fault = FAULTS.get(self.how)
        for line in ON_GPU if self._on_gpu else ON_CPU:
            if fault is not None and line.stage == fault.stage:
                self._fail(fault.words)
            self.take(line.seconds)
            self._say(line)
        if fault is not None and not self.dies:
            self._fail(fault.words)

    @property
    def dies(self) -> bool:
        """Of the first request."""
        return self.how in FAULTS and FAULTS[self.how].stage == SERVED

    def die(self) -> None:
        self._fail(FAULTS[self.how].words)

    def take(self, seconds: float) -> None:
        if self._speed is not None:
            time.sleep(seconds / self._speed)  # that it takes its time is what was asked for

    def _say(self, line: Line) -> None:
        pid = self.core if line.process != "APIServer" else os.getpid()
        moment = time.strftime("%m-%d %H:%M:%S")
        text = line.text.format(**self._facts)
        print(f"({line.process} pid={pid}) INFO {moment} [{line.place}] {text}", flush=True)  # noqa: T201  # its log

    def _fail(self, words: str) -> None:
        moment = time.strftime("%m-%d %H:%M:%S")
        sys.exit(f"(EngineCore pid={self.core}) ERROR {moment} [core.py:1512] {words}")


def metrics(
    name: str,
    *,
    prompt_tokens: int,
    generation_tokens: int,
    running: int,
    finished: int,
    cache: Mapping[str, object] | None = None,
) -> str:
    """What it has counted, and what it says of its cache, as vLLM names it."""
    label = f'engine="0",model_name="{name}"'
    counted = {
        "prompt_tokens_total": prompt_tokens,
        "generation_tokens_total": generation_tokens,
        "num_preemptions_total": 0,
        "num_requests_running": running,
        "num_requests_waiting": 0,
        "kv_cache_usage_perc": 0,
    }
    lines = [f"vllm:{each}{{{label}}} {float(value)}" for each, value in counted.items()]
    if cache is not None:
        told = ",".join(f'{label}="{value}"' for label, value in sorted({**cache, "engine": 0}.items()))
        lines.append(f"vllm:cache_config_info{{{told}}} 1.0")
    success = f'engine="0",finished_reason="stop",model_name="{name}"'
    lines.append(f"vllm:request_success_total{{{success}}} {float(finished)}")
    return "\n".join([*lines, ""])


def _scheduler() -> int:
    """A process that lives until it is killed, as vLLM's lives on when nobody can tell it to end."""
    child = os.fork()
    if child == 0:
        os.closerange(3, 256)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            signal.pause()

    def end() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)

    atexit.register(end)
    return child


class _Door(BaseHTTPRequestHandler):
    engine: _Engine

    def do_GET(self) -> None:
        name = self.engine.name
        if self._is_refused():
            return
        if self.path == "/health":
            self._answer(b"")
        elif self.path == "/metrics":
            counted = metrics(
                name,
                prompt_tokens=self.engine.prompt_tokens,
                generation_tokens=self.engine.generation_tokens,
                running=self.engine.running,
                finished=self.engine.finished,
                cache=self.engine.cache,
            )
            self._answer(counted.encode(), kind="text/plain; version=0.0.4; charset=utf-8")
        elif self.path == "/v1/models":
            length = self.engine.wanted.max_model_len
            model = {"id": name, "object": "model", "owned_by": "vllm", "root": name, "max_model_len": length}
            self._tell({"object": "list", "data": [model]})
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        if self._is_refused():
            return
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.engine.dies:
            threading.Thread(target=self.server.shutdown).start()
            return
        count = int(asked.get("max_tokens") or 2)
        self.engine.running += 1
        time.sleep(self.engine.ponders)  # a slow answer is what is asked for
        self.engine.take(count * TOKEN_SECONDS)
        self.engine.running -= 1
        self.engine.prompt_tokens += 3
        self.engine.generation_tokens += count
        self.engine.finished += 1
        usage = {"prompt_tokens": 3, "completion_tokens": count, "total_tokens": 3 + count}
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
        told = {"id": "1", "object": "chat.completion", "model": self.engine.name, "usage": usage}
        if asked.get("stream"):
            delta = {**told, "choices": [{**choice, "delta": {"content": "Hello."}, "text": "Hello."}]}
            self._answer(f"data: {json.dumps(delta)}\n\ndata: [DONE]\n\n".encode(), kind="text/event-stream")
        else:
            message = {"role": "assistant", "content": "Hello."}
            self._tell({**told, "choices": [{**choice, "message": message, "text": "Hello."}]})

    def _is_refused(self) -> bool:
        """As vLLM's middleware does it: what begins with /v1 wants the key."""
        key = os.environ.get("VLLM_API_KEY")
        if not key or not self.path.startswith("/v1") or self.headers.get("Authorization") == f"Bearer {key}":
            return False
        self.send_error(401)
        return True

    def _tell(self, found: dict[str, Any]) -> None:
        self._answer(json.dumps(found).encode())

    def _answer(self, content: bytes, *, kind: str = "application/json") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # its name above
        return


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


def main(folder: Path, words: list[str]) -> None:
    how = next_start(folder, "vllm")
    told = {name: value for name, value in os.environ.items() if name.startswith(("VLLM_", "CUDA_", "NCCL_"))}
    start = {"how": how, "pid": os.getpid(), "arguments": words, "environment": told}
    if words[:1] != ["serve"] or how == "bad_flag":
        keep(folder, "vllm", start)
        _Parser(prog="vllm").error("unrecognized arguments: --no-such-flag")
    wanted = _arguments(words[1:])
    engine = _Engine(how, wanted, json.loads((folder / "speed.json").read_text()))
    keep(folder, "vllm", start | {"core": engine.core})
    signal.signal(signal.SIGTERM, signal.SIG_IGN if how == "deaf" else _end)
    if how == "hang":
        signal.pause()
    if how.startswith("slow="):
        time.sleep(float(how.removeprefix("slow=")))  # a slow start is what is asked for
    engine.come_up()
    if wanted.headless:
        signal.pause()
    _Door.engine = engine
    door = ThreadingHTTPServer((wanted.host, 0 if how == "wrong_port" else wanted.port), _Door)
    print("INFO:     Application startup complete.", flush=True)  # noqa: T201  # its log
    door.serve_forever()
    engine.die()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
