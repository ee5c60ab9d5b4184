"""llama.cpp as a process of its own, serving the OpenAI API on a free port.

`python -m services.node_agent.llama_server --report FILE --model FILE …`, started by the agent. It tells in the report
file who it is, where it listens and what it computes on. It outlives the agent; it ends on SIGTERM, and when its report
is gone or another's: then its folder was removed, and nobody could find it any more.
"""

import argparse
import json
import os
import signal
import sys
import threading
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from services.node_agent.engine_facts import Device, EngineReport
from services.node_agent.machine import choose_device

WARNINGS = 2
CHECK_SECONDS = 2.0
ENDING = (signal.SIGTERM, signal.SIGINT)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--fingerprint", required=True)
    parser.add_argument("--claim", default="", help="what its agent calls the memory that is reserved for it")
    parser.add_argument("--key-file", type=Path, help="with what clients have to say; not given: nothing")
    parser.add_argument("--model", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--context", type=int, required=True, help="tokens per slot")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto")
    parser.add_argument("--embeddings", action="store_true")
    return parser.parse_args()


def _tell(path: Path, report: EngineReport) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(json.dumps(asdict(report)), encoding="utf-8")
    unfinished.replace(path)


def _gpus_present() -> list[str]:
    """GPUs as the kernel shows them, also those no library here can use."""
    found: list[str] = []
    for information in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        lines = information.read_text(encoding="utf-8", errors="replace").splitlines()
        found.append(next((line.split(":", 1)[1].strip() for line in lines if line.startswith("Model:")), "NVIDIA GPU"))
    if not found:
        found = ["an NVIDIA GPU" for _ in sorted(Path("/dev").glob("nvidia[0-9]*"))]
    return found or (["an AMD GPU"] if Path("/dev/kfd").exists() else [])


def _devices(xllamacpp: Any) -> list[Device]:
    kinds = xllamacpp.ggml_backend_dev_type
    gpus = (kinds.GGML_BACKEND_DEVICE_TYPE_GPU, kinds.GGML_BACKEND_DEVICE_TYPE_IGPU)
    return [
        Device(name=found["name"], description=found["description"], is_gpu=found["type"] in gpus)
        for found in xllamacpp.get_device_info()
    ]


def _parameters(xllamacpp: Any, wanted: argparse.Namespace, *, on_gpu: bool) -> Any:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = wanted.model
    parameters.model_alias = {wanted.name}
    parameters.hostnames = [wanted.host]
    parameters.port = wanted.port
    if wanted.key_file is not None:
        parameters.api_keys = [wanted.key_file.read_text(encoding="utf-8")]
    parameters.n_parallel = wanted.slots
    parameters.n_ctx = wanted.context * wanted.slots
    parameters.kv_unified = False
    # Prompts that left their slots would be kept in 8 GiB of RAM that nobody claimed.
    parameters.cache_ram_mib = 0
    parameters.cpuparams.n_threads = wanted.threads
    parameters.cpuparams_batch.n_threads = wanted.threads
    # Each connection, also an idle one, keeps a thread: /health must still find one when all slots are busy.
    parameters.n_threads_http = 4 * wanted.slots + 16
    parameters.n_gpu_layers = 999 if on_gpu else 0
    parameters.endpoint_metrics = True
    parameters.endpoint_slots = True
    parameters.verbosity = WARNINGS
    parameters.ui = False
    # A web page in this machine's browser must not be able to read answers.
    parameters.cors_origins = "http://127.0.0.1"
    if wanted.embeddings:
        parameters.embedding = True
        parameters.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    return parameters


def _serve(wanted: argparse.Namespace, report: EngineReport) -> None:
    import xllamacpp  # after the first report: it takes a while to load

    # The engine's threads inherit this, so that the signal waits for us and reaches none of them.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    device, reason = choose_device(wanted.device, _devices(xllamacpp), _gpus_present())
    report = replace(report, device=device, device_reason=reason)
    try:
        server = xllamacpp.Server(_parameters(xllamacpp, wanted, on_gpu=device != "cpu"))
    except RuntimeError as error:
        _tell(wanted.report, replace(report, problem=str(error)))
        raise
    _tell(wanted.report, replace(report, url=server.listening_address))
    threading.Thread(target=_end_when_forgotten, args=(wanted.report,), daemon=True).start()
    signal.sigwait(ENDING)
    del server


def _end_when_forgotten(report: Path) -> None:
    while _is_ours(report):
        time.sleep(CHECK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def _is_ours(report: Path) -> bool:
    try:
        return bool(json.loads(report.read_text(encoding="utf-8"))["pid"] == os.getpid())
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        # Not a moment to decide: the disk may be full or the file handles used up.
        return True


def main() -> None:
    wanted = _arguments()
    report = EngineReport(
        pid=os.getpid(),
        fingerprint=wanted.fingerprint,
        command=tuple(sys.orig_argv),
        started_at=datetime.now(UTC).isoformat(),  # noqa: TID251  # a program of its own
        claim=wanted.claim,
    )
    _tell(wanted.report, report)
    _serve(wanted, report)


if __name__ == "__main__":
    main()
