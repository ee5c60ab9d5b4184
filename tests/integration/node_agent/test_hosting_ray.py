"""Engines over Ray, as an agent begins and ends them. A program stands for Ray; the real one is in `tests/engines`."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from libs.common.contracts.engine_hosting import HostedEngine, LookAtEngines, StartEngine, StopEngine
from libs.common.contracts.node_registry import EngineState
from libs.common.errors import Malformed
from services.node_agent.hosted_folder import HostedFolder
from tests.fake_engine import begun
from tests.fake_ray import fake_ray, ray_begun
from tests.integration.node_agent.conftest import runs, until
from tests.integration.node_agent.test_hosting import Host, host, start_of
from tools.free_ports import free_ports

SECRET = "0123456789abcdef"


@asynccontextmanager
async def host_with_ray(folder: Path, *starts: str) -> AsyncIterator[Host]:
    fake_ray(folder / "vllm", *starts)
    async with host(folder) as made:
        yield made


def over_ray(rank: int, address: str, **changes: Any) -> StartEngine:
    """A node of a cluster of two with two GPUs each."""
    begin = ("--address", address) if rank else ("--head", "--port", address.rpartition(":")[2])
    own = ("--node-ip-address", "127.0.0.1", "--num-gpus", "2", "--num-cpus", "1", "--block")
    ray = {"arguments": ("start", *begin, *own), "address": address, "nodes": 2, "gpus": 4, "join_seconds": 20}
    fields: dict[str, Any] = {"rank": rank, "serves": rank == 0, "ray": ray | changes}
    fields["environment"] = {"RAY_ADDRESS": address, "RAY_AUTH_TOKEN": SECRET}
    return start_of(**(fields | ({"arguments": ()} if rank else {})))


def free_address() -> str:
    return f"127.0.0.1:{free_ports(1).pop()}"


def of_ray(folder: Path) -> list[int]:
    """All processes that Ray started, or that are Ray's own."""
    return [pid for start in ray_begun(folder) for pid in (start["pid"], *start["children"])]


def scratch_of(engine: StartEngine, folder: Path) -> Path:
    name = f"{engine.instance}.{engine.replica}.{engine.generation}.{engine.rank}"
    return HostedFolder(folder / "engines" / "engines" / name).scratch


async def until_all(made: Host, holds: Callable[[HostedEngine], object]) -> Sequence[HostedEngine]:
    async with asyncio.timeout(20):
        while not all(map(holds, engines := (await made.hosting.look(LookAtEngines())).engines)):
            await asyncio.sleep(0.02)
    return engines


async def test_an_engine_begins_when_all_nodes_have_joined_and_nothing_of_ray_outlives_it(tmp_path):
    address, programs = free_address(), tmp_path / "vllm"
    head, other = over_ray(0, address), over_ray(1, address)
    async with host_with_ray(tmp_path) as made:
        await made.hosting.start(head)
        await until(lambda: ray_begun(programs))
        assert begun(programs) == []
        await made.hosting.start(other)
        engines = await until_all(made, lambda each: each.state is EngineState.READY)
        await until(lambda: len(ray_begun(programs)) == 2)

        (start,) = begun(programs)
        assert start["pid"] in [each.pid for each in engines]
        assert [each["environment"]["RAY_AUTH_TOKEN"] for each in ray_begun(programs)] == [SECRET, SECRET]
        assert scratch_of(head, tmp_path).is_dir()
        assert all(runs(pid) for pid in of_ray(programs))
        for rank in (0, 1):
            await made.hosting.stop(StopEngine(instance="tiny", generation=1, rank=rank))
        await until_all(made, lambda each: each.ended_at)

        assert [pid for pid in of_ray(programs) if runs(pid)] == []
        assert [scratch_of(each, tmp_path).exists() for each in (head, other)] == [False, False]


async def test_a_secret_is_in_no_command_line(tmp_path):
    address = free_address()
    async with host_with_ray(tmp_path) as made:
        ready = await made.hosting.start(over_ray(0, address))
        await until(lambda: ray_begun(tmp_path / "vllm"))

        lines = [Path(f"/proc/{pid}/cmdline").read_text() for pid in (ready.pid, *of_ray(tmp_path / "vllm"))]
        assert not any(SECRET in line for line in lines)


async def test_a_node_that_does_not_join_in_time_ends_the_start_with_a_sentence(tmp_path):
    address = free_address()
    async with host_with_ray(tmp_path, "ok", "lost") as made:
        await made.hosting.start(over_ray(0, address, join_seconds=3))
        await until(lambda: ray_begun(tmp_path / "vllm"))
        await made.hosting.start(over_ray(1, address))
        async with asyncio.timeout(20):
            while not (told := (await made.hosting.look(LookAtEngines())).engines[0]).ended_at:
                await asyncio.sleep(0.02)

        assert "Ray has 1 of 2 nodes and 2 of 4 GPUs after 3 s." in told.last_words
        assert begun(tmp_path / "vllm") == []


async def test_a_head_that_does_not_answer_in_time_ends_who_would_join_with_a_sentence(tmp_path):
    address = free_address()
    async with host_with_ray(tmp_path) as made:
        await made.hosting.start(over_ray(1, address, join_seconds=0.5))

        assert f"Ray's head at {address} did not answer within 0.5 s." in (await made.until_ended()).last_words


async def test_where_ray_is_not_installed_that_is_told_in_a_sentence(tmp_path):
    async with host(tmp_path) as made:
        await made.hosting.start(over_ray(0, free_address()))

        assert "Ray is not installed here: there is no " in (await made.until_ended()).last_words


async def test_a_port_that_somebody_else_has_is_told_at_once(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        async with host_with_ray(tmp_path) as made:
            await made.hosting.start(over_ray(0, address))

            assert f"Address already in use: {address}" in (await made.until_ended()).last_words


async def test_what_ray_leaves_is_ended_by_the_next_agent(tmp_path):
    address = free_address()
    head = over_ray(0, address, nodes=1, gpus=2)
    async with host_with_ray(tmp_path) as first:
        await first.hosting.start(head)
        ready = await first.until_state(EngineState.READY)
        left = of_ray(tmp_path / "vllm")
        await first.forget()
        os.kill(ready.pid or 0, signal.SIGKILL)
        await until(lambda: not runs(ready.pid or 0))
        assert all(runs(pid) for pid in left)
        second = Host(tmp_path / "engines", tmp_path / "vllm" / "vllm")
        try:
            assert (await second.one()).state is EngineState.FAILED
            assert [pid for pid in left if runs(pid)] == []
            assert not scratch_of(head, tmp_path).exists()
        finally:
            await second.close()


@pytest.mark.parametrize("arguments", [("stop",), ("start", "--head", "--temp-dir=/tmp")])
async def test_others_cannot_have_ray_do_anything_else_here(tmp_path, arguments):
    async with host_with_ray(tmp_path) as made:
        with pytest.raises(Malformed):
            await made.hosting.start(over_ray(0, free_address(), arguments=arguments))

        assert ray_begun(tmp_path / "vllm") == []
