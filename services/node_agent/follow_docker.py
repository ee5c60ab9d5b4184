"""Stands for an engine in a container: writes what it writes, ends as it ends, and hands on SIGTERM.

`python -m services.node_agent.follow_docker --address SOCKET --name CONTAINER`, started by the agent; it outlives that.
"""

import argparse
import os
import signal
import sys
from types import FrameType

import docker

SIGNALLED = 128


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--address", required=True, help="the Docker engine's socket")
    parser.add_argument("--name", required=True)
    wanted = parser.parse_args()
    client = docker.APIClient(base_url=wanted.address, version="auto", timeout=None)

    def hand_on(number: int, frame: FrameType | None) -> None:
        other = docker.APIClient(base_url=wanted.address, version="auto")
        other.kill(wanted.name, number)

    signal.signal(signal.SIGTERM, hand_on)
    for piece in client.logs(wanted.name, stream=True, follow=True):
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    _end_as(int(client.wait(wanted.name)["StatusCode"]))


def _end_as(status: int) -> None:
    """A shell tells a signal by a number above 128; who looks at a process is told the signal itself."""
    if status > SIGNALLED:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), status - SIGNALLED)
    sys.exit(status)


if __name__ == "__main__":
    main()
