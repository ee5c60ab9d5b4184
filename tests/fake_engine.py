"""A program with vLLM's command line, log lines and HTTP routes, and with ways to fail, for what needs a GPU or speed.

`fake_vllm(folder)` makes a `vllm` that starts it. How its starts go is written in `folder/starts.json`: a list with one
word for each start to come, `ok` after the last. Whether GPUs are there it does not ask.

The lines follow vLLM's own, of 0.10 to 0.33: `gpu_model_runner` (model loading), `gpu_worker` (available KV cache
memory), `kv_cache_utils` (size and concurrency), `core` (init engine), `launcher` (routes).
"""

import argparse
import fcntl
import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

OUT_OF_MEMORY = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 896.00 MiB. GPU 0 has a total capacity of 23.64 GiB "
    "of which 512.00 MiB is free."
)
FAILURES = {
    "oom_at_load": ("load", OUT_OF_MEMORY),
    "oom_at_profiling": ("profile", OUT_OF_MEMORY),
    "oom_at_capture": ("capture", OUT_OF_MEMORY),
    "no_cache": (
        "profile",
        "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when "
        "initializing the engine.",
    ),
    "card_in_use": (
        "load",
        "ValueError: Free memory on device (10.2/23.64 GiB) on startup is less than desired GPU memory utilization "
        "(0.92, 21.75 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes.",
    ),
    "port_taken": ("serve", "OSError: [Errno 98] Address already in use"),
    "crash": ("load", "RuntimeError: a bug that nobody has seen before"),
}
BAD_FLAG_STATUS = 2


def fake_vllm(folder: Path, *starts: str) -> Path:
    """A `vllm` whose starts go so. Returns its path, for ENGINE_PROGRAMS."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "starts.json").write_text(json.dumps(starts))
    program = folder / "vllm"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).resolve()} {folder} "$@"\n')
    program.chmod(0o755)
    return program


def begun(folder: Path) -> list[dict[str, Any]]:
    """Every start of it: its arguments, its environment as far as it matters, how it was to go."""
    try:
        return [json.loads(line) for line in (folder / "begun.jsonl").read_text().splitlines()]
    except FileNotFoundError:
        return []


def _arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="vllm serve")
    parser.add_argument("model")
    parser.add_argument("--host", default="0.0.0.0")  # as vLLM does
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--served-model-name")
    for name in ("revision", "quantization", "dtype", "kv-cache-dtype", "master-addr", "distributed-executor-backend"):
        parser.add_argument(f"--{name}")
    for name in ("tensor-parallel-size", "pipeline-parallel-size", "nnodes", "node-rank", "master-port"):
        parser.add_argument(f"--{name}", type=int, default=1)
    for name in ("max-model-len", "max-num-seqs", "max-num-batched-tokens", "kv-cache-memory-bytes"):
        parser.add_argument(f"--{name}", type=int, default=1024)
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.92)
    for name in ("enforce-eager", "enable-expert-parallel", "headless"):
        parser.add_argument(f"--{name}", action="store_true")
    return parser.parse_args(words)


def _next_start(folder: Path, words: list[str]) -> str:
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        starts = json.loads((folder / "starts.json").read_text())
        how = starts.pop(0) if starts else "ok"
        (folder / "starts.json").write_text(json.dumps(starts))
        with (folder / "begun.jsonl").open("a") as kept:
            told = {name: value for name, value in os.environ.items() if name.startswith(("VLLM_", "CUDA_", "NCCL_"))}
            kept.write(json.dumps({"how": how, "pid": os.getpid(), "arguments": words, "environment": told}) + "\n")
    return how


def _say(place: str, text: str) -> None:
    moment = time.strftime("%m-%d %H:%M:%S")
    sys.stdout.write(f"(EngineCore_DP0 pid={os.getpid()}) INFO {moment} [{place}] {text}\n")
    sys.stdout.flush()


def _come_up(how: str, wanted: argparse.Namespace) -> None:
    stage, words = FAILURES.get(how, ("", ""))
    lines = (
        ("load", "gpu_model_runner.py:2338", f"Starting to load model {wanted.model}..."),
        ("", "gpu_model_runner.py:2392", "Model loading took 0.0021 GiB and 0.012 seconds"),
        ("profile", "gpu_worker.py:298", "Available KV cache memory: 0.50 GiB"),
        ("", "kv_cache_utils.py:864", "GPU KV cache size: 32,768 tokens"),
        ("", "kv_cache_utils.py:868", f"Maximum concurrency for {wanted.max_model_len:,} tokens per request: 32.00x"),
        ("capture", "gpu_model_runner.py:3118", "Graph capturing finished in 1 secs, took 0.10 GiB"),
        ("", "core.py:218", "init engine (profile, create kv cache, warmup model) took 0.10 seconds"),
        ("serve", "launcher.py:29", "Available routes are:"),
    )
    for at, place, text in lines:
        if at == stage and words:
            sys.exit(f"(EngineCore_DP0 pid={os.getpid()}) ERROR {words}")
        _say(place, text)


class _Door(BaseHTTPRequestHandler):
    model = ""
    ponders = 0.0
    in_hand: ClassVar[list[int]] = []

    def do_GET(self) -> None:
        if self.path == "/health":
            self._answer(b"")
        elif self.path == "/metrics":
            self._answer(f'vllm:num_requests_running{{engine="0"}} {len(self.in_hand)}.0\n'.encode(), kind="text/plain")
        elif self.path == "/v1/models":
            self._tell({"object": "list", "data": [{"id": self.model, "object": "model"}]})
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.in_hand.append(1)
        time.sleep(self.ponders)  # a slow answer is what is asked for
        self.in_hand.pop()
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
        told = {"id": "1", "object": "chat.completion", "model": self.model, "usage": usage}
        if asked.get("stream"):
            delta = {**told, "choices": [{**choice, "delta": {"content": "Hello."}, "text": "Hello."}]}
            self._answer(f"data: {json.dumps(delta)}\n\ndata: [DONE]\n\n".encode(), kind="text/event-stream")
        else:
            message = {"role": "assistant", "content": "Hello."}
            self._tell({**told, "choices": [{**choice, "message": message, "text": "Hello."}]})

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
    how = _next_start(folder, words)
    if words[:1] != ["serve"] or how == "bad_flag":
        sys.stderr.write("vllm: error: unrecognized arguments: --no-such-flag\n")
        sys.exit(BAD_FLAG_STATUS)
    wanted = _arguments(words[1:])
    signal.signal(signal.SIGTERM, signal.SIG_IGN if how == "deaf" else _end)
    if how == "hang":
        _say("core.py:50", "Initializing a V1 LLM engine")
        signal.pause()
    if how.startswith("slow="):
        time.sleep(float(how.removeprefix("slow=")))  # a slow start is what is asked for
    _come_up(how, wanted)
    if wanted.headless:
        signal.pause()
    if how.startswith("ponder="):
        _Door.ponders = float(how.removeprefix("ponder="))
    _Door.model = wanted.served_model_name or wanted.model
    door = ThreadingHTTPServer((wanted.host, 0 if how == "wrong_port" else wanted.port), _Door)
    _say("api_server.py:1912", "Application startup complete.")
    door.serve_forever()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
