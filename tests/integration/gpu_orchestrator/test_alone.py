"""One orchestrator for one machine, by a name that the kernel keeps or by a file."""

import asyncio
import os
import sys
import uuid
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest

from libs.common.errors import WrongSetting
from services.gpu_orchestrator.alone_posix import PosixAlone
from tests.mesh_process import mesh_process

Make = Callable[[], PosixAlone]
HOLDER = """
import asyncio, sys
from pathlib import Path
from services.gpu_orchestrator.alone_posix import PosixAlone

async def hold():
    async with PosixAlone(Path(sys.argv[2]) if sys.argv[1] == "file" else None, name=sys.argv[2]).held():
        print("held", flush=True)
        await asyncio.sleep(600)

asyncio.run(hold())
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
    return partial(PosixAlone, Path(place) if kind == "file" else None, name=place, wait_seconds=0.1)


async def test_a_second_one_is_refused_and_told_who_is_first_until_that_one_is_gone(make: Make):
    async with make().held():
        with pytest.raises(
            WrongSetting, match=rf"process {os.getpid()}, gives away the memory of this machine; stop it"
        ):
            async with make().held():
                pass
    async with make().held():
        pass


async def test_who_begins_while_another_ends_waits_for_it(make: Make, where: tuple[str, str]):
    kind, place = where
    patient = PosixAlone(Path(place) if kind == "file" else None, name=place)
    async with AsyncExitStack() as second:
        async with make().held():
            waiting = asyncio.create_task(second.enter_async_context(patient.held()))
            await asyncio.sleep(0)
            assert not waiting.done()
        await waiting


async def test_the_kernel_lets_the_next_one_in_after_a_kill(make: Make, where: tuple[str, str]):
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", HOLDER, *where, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"held\n"
        with pytest.raises(WrongSetting, match=f"process {process.pid},"):
            async with make().held():
                pass
    finally:
        process.kill()
        await process.wait()

    async with make().held():
        pass


async def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path):
    with pytest.raises(WrongSetting, match=r"GPU_ORCHESTRATOR_LOCK is '.*nowhere/lock', which cannot be opened"):
        async with PosixAlone(tmp_path / "nowhere" / "lock").held():
            pass


async def test_an_orchestrator_with_a_data_folder_of_its_own_does_not_start_beside_another(tmp_path: Path):
    with mesh_process(tmp_path / "second") as mesh:
        async with PosixAlone(Path(mesh.environment["GPU_ORCHESTRATOR_LOCK"])).held():
            code = await asyncio.to_thread(mesh.run, ("-m", "services", "gpu_orchestrator"), timeout=30)

        assert code == 2, mesh.output
        assert f"process {os.getpid()}, gives away the memory of this machine" in mesh.output
