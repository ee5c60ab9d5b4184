"""Whether an orchestrator is the only one of its machine, by a name that the kernel keeps or by a file."""

import asyncio
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import httpx
import pytest

from libs.common.errors import WrongSetting
from services.gpu_orchestrator.alone_posix import PosixAlone
from tests.mesh_process import mesh_process

Make = Callable[[], PosixAlone]
HOLDER = """
import sys, time
from pathlib import Path
from services.gpu_orchestrator.alone_posix import PosixAlone

alone = PosixAlone(Path(sys.argv[2]) if sys.argv[1] == "file" else None, name=sys.argv[2])
print(alone.problem(), flush=True)
time.sleep(600)
"""


@pytest.fixture(params=["file", "name"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """How orchestrators of one machine find one another, and where."""
    kind = str(request.param)
    if kind == "name" and sys.platform != "linux":
        pytest.skip("only Linux keeps such names")
    return kind, str(tmp_path / "lock") if kind == "file" else f"test/{uuid.uuid4().hex}"


@pytest.fixture
def make(where: tuple[str, str]) -> Make:
    kind, place = where
    return partial(PosixAlone, Path(place) if kind == "file" else None, name=place)


@pytest.fixture
def second(make: Make) -> Iterator[PosixAlone]:
    with closing(make()) as alone:
        yield alone


def test_a_second_one_names_the_first_until_that_one_is_gone(make: Make, second: PosixAlone):
    with closing(make()) as first:
        assert first.problem() is None
        for _ in range(5):
            assert f"process {os.getpid()}, gives away the memory of this machine" in str(second.problem())
        assert first.problem() is None

    assert second.problem() is None


async def test_the_kernel_lets_go_after_a_kill(second: PosixAlone, where: tuple[str, str]):
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", HOLDER, *where, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"None\n"
        assert f"process {process.pid}," in str(second.problem())
    finally:
        process.kill()
        await process.wait()

    assert second.problem() is None


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path):
    with pytest.raises(WrongSetting, match=r"GPU_ORCHESTRATOR_LOCK is '.*nowhere/lock', which cannot be opened"):
        PosixAlone(tmp_path / "nowhere" / "lock").problem()


def test_an_orchestrator_beside_another_says_so_and_works(tmp_path: Path):
    with (
        mesh_process(tmp_path / "second") as mesh,
        closing(PosixAlone(Path(mesh.environment["GPU_ORCHESTRATOR_LOCK"]))) as first,
    ):
        assert first.problem() is None
        mesh.start().wait_ready(["gpu_orchestrator"])
        door = mesh.url("gpu_orchestrator")

        told = httpx.get(f"{door}/readyz")
        assert told.status_code == 200
        assert told.json()["checks"]["machine"].startswith(
            f"degraded: another GPU orchestrator, process {os.getpid()},"
        )
        assert httpx.get(f"{door}/api/v1/gpu/states").status_code == 200
