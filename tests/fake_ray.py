"""A program with the command line and the lines of `ray start` and `ray status`, as far as the agent uses them.

`fake_ray(folder)` makes a `ray` that starts it, for beside `fake_vllm(folder)`. How its starts go is written in
`folder/ray.json`: a list with one word for each start to come, `ok` after the last; `lost` never joins. Like Ray's, its
processes do not end when the first one is killed, and its workers are in groups of their own.
"""

import argparse
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from tests.fake_program import fake_program, keep, kept, next_start

STARTED = ("SUCC scripts.py:1084 -- Ray runtime started.", "This command will now block forever")
STATUS = """======== Autoscaler status: {now} ========
Node status
---------------------------------------------------------------
Active:
{nodes}
Pending:
 (no pending nodes)
Recent failures:
 (no failures)

Resources
---------------------------------------------------------------
Total Usage:
 0.0/{cpus}.0 CPU
 0.0/{gpus}.0 GPU
 0B/23.27GiB memory
 0B/95.37MiB object_store_memory

From request_resources:
 (none)
Pending Demands:
 (no resource demands)
"""
"""As Ray 2.60 says it."""


def fake_ray(folder: Path, *starts: str) -> Path:
    return fake_program(folder, "ray", "tests.fake_ray", starts)


def ray_begun(folder: Path) -> list[dict[str, Any]]:
    """Every `ray start`: its arguments, its environment as far as it matters, and its processes."""
    return kept(folder, "ray")


def main(folder: Path, words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="ray", allow_abbrev=False)
    parser.add_argument("command", choices=("start", "status"))
    for name in ("head", "block", "disable-usage-stats"):
        parser.add_argument(f"--{name}", action="store_true")
    for name in ("address", "node-ip-address", "include-dashboard", "temp-dir"):
        parser.add_argument(f"--{name}")
    for name in ("port", "num-gpus", "num-cpus", "object-store-memory", "min-worker-port", "max-worker-port"):
        parser.add_argument(f"--{name}", type=int, default=0)
    wanted = parser.parse_args(words)
    address = wanted.address or f"{wanted.node_ip_address}:{wanted.port}"
    cluster = folder / f"cluster-{address}"
    if wanted.command == "status":
        print(_status(cluster), flush=True)  # noqa: T201  # what it is asked for
    else:
        _start(folder, cluster, wanted, words)


def _status(cluster: Path) -> str:
    members = sorted(cluster.iterdir())
    gpus = sum(int(member.read_text()) for member in members)
    nodes = "\n".join(f" 1 node_{member.name}" for member in members)
    return STATUS.format(now=time.strftime("%F %T"), nodes=nodes, cpus=len(members), gpus=gpus)


def _start(folder: Path, cluster: Path, wanted: argparse.Namespace, words: list[str]) -> None:
    how = next_start(folder, "ray")
    (Path(wanted.temp_dir) / "session_latest").mkdir()
    told = {name: value for name, value in os.environ.items() if name.startswith(("VLLM_", "CUDA_", "RAY_"))}
    children = [_process(own_group=own_group) for own_group in (False, True)]
    start = {"how": how, "pid": os.getpid(), "children": children, "arguments": words, "environment": told}
    keep(folder, "ray", start)
    if how != "lost":
        cluster.mkdir(exist_ok=True)
        (cluster / str(os.getpid())).write_text(str(wanted.num_gpus))
    for line in STARTED:
        print(line, flush=True)  # noqa: T201  # its log
    if wanted.head:
        door = socket.create_server(("", wanted.port))
        while True:
            door.accept()[0].close()
    signal.pause()


def _process(*, own_group: bool) -> int:
    child = os.fork()
    if child == 0:
        if own_group:
            os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            signal.pause()
    return child


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
