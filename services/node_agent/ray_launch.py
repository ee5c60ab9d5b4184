"""Begins a Ray cluster, or joins one, and where there is an engine becomes it as soon as the cluster is whole.

`python -m services.node_agent.ray_launch … -- ray start … -- vllm serve …`, started by the agent. What Ray starts stays
in the session of this process, with which the agent ends it: `ray stop` would end what others have on the machine too.
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from services.node_agent.ray_status import Seen, incomplete, seen_in

LOOK_SECONDS = 1.0
STATUS_SECONDS = 20.0


def main(words: Sequence[str]) -> None:
    ours, ray, engine = _split(words)
    wanted = _arguments(ours)
    if shutil.which(ray[0]) is None:
        sys.exit(f"Ray is not installed here: there is no {ray[0]}. Install it where vLLM is, with `pip install ray`.")
    until = time.monotonic() + wanted.seconds
    wanted.folder.mkdir(mode=0o700)
    start = [*ray, "--temp-dir", str(wanted.folder)]
    if not engine:
        _await_head(wanted.address, wanted.seconds, until)
        os.execvp(start[0], start)
    if _answers(wanted.address):  # Ray itself would wait minutes for what listens there
        sys.exit(f"Address already in use: {wanted.address}, where Ray's head was to listen.")
    head = subprocess.Popen(start, stdin=subprocess.DEVNULL)
    _await_cluster(ray[0], head, wanted, until)
    os.execvp(engine[0], engine)


def _split(words: Sequence[str]) -> Iterator[list[str]]:
    """At the first two `--`: an engine may have one of its own."""
    left = list(words)
    for _ in range(2):
        end = left.index("--")
        yield left[:end]
        left = left[end + 1 :]
    yield left


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True, help="is made, for what Ray keeps")
    parser.add_argument("--address", required=True, help="of the cluster's head")
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--gpus", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True, help="until the cluster is whole")
    return parser.parse_args(words)


def _await_head(address: str, seconds: float, until: float) -> None:
    while not _answers(address):
        if time.monotonic() > until:
            sys.exit(f"Ray's head at {address} did not answer within {seconds:g} s.")
        time.sleep(LOOK_SECONDS)


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=LOOK_SECONDS):
            return True
    except OSError:
        return False


def _await_cluster(program: str, head: "subprocess.Popen[bytes]", wanted: argparse.Namespace, until: float) -> None:
    seen = Seen(0, 0)
    while seen.nodes < wanted.nodes or seen.gpus < wanted.gpus:
        if head.poll() is not None:
            sys.exit(f"`ray start` ended with exit status {head.returncode}.")
        if time.monotonic() > until:
            sys.exit(incomplete(seen, wanted.nodes, wanted.gpus, wanted.seconds))
        time.sleep(LOOK_SECONDS)
        if _answers(wanted.address):
            seen = _looked(program, wanted.address)


def _looked(program: str, address: str) -> Seen:
    try:
        told = subprocess.run(
            [program, "status", "--address", address],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=STATUS_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Seen(0, 0)
    return seen_in(told.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
