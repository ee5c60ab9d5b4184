"""Whose a process is: by its ancestors, and by the container that its control group names. On a made `proc`."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.gpu_orchestrator.meters import Root
from services.gpu_orchestrator.meters_proc import ProcProcesses

CONTAINER = "4f1b0c9d2e7a" + "0" * 52
GROUPS = {
    "docker with systemd": f"0::/system.slice/docker-{CONTAINER}.scope",
    "docker of version 1": f"12:memory:/docker/{CONTAINER}\n1:name=systemd:/docker/{CONTAINER}",
    "podman": f"0::/machine.slice/libpod-{CONTAINER}.scope/container",
    "kubernetes": f"0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-{CONTAINER}.scope",
}


def add(
    root: Path,
    pid: int,
    parent: int,
    *,
    group: str = "0::/user.slice",
    state: str = "S",
    kib: int = 2048,
    flags: int = 0x0040_0000,
) -> None:
    folder = root / "proc" / str(pid)
    folder.mkdir(parents=True)
    numbers = " ".join(["0", "0", "0", "0", str(flags), *["0"] * 12])
    (folder / "stat").write_text(f"{pid} (a (strange) name) {state} {parent} {numbers} {1000 + pid} 0\n")
    (folder / "cgroup").write_text(group + "\n")
    (folder / "status").write_text(f"Name:\tx\nRssAnon:\t{kib} kB\nRssFile:\t99999 kB\nRssShmem:\t{kib} kB\n")
    (folder / "cmdline").write_bytes(f"program\0{pid}\0".encode())


@pytest.fixture
async def processes(tmp_path: Path) -> AsyncIterator[ProcProcesses]:
    made = ProcProcesses(tmp_path, own_pid=30)
    yield made
    made.close()


def by_pid(name: str, pid: int) -> Root:
    return Root(reservation_ids=(name,), pid=pid, pid_start=1000 + pid)


def by_container(*names: str, container_id: str = CONTAINER) -> Root:
    return Root(reservation_ids=names, container_id=container_id)


@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("container_id", [CONTAINER, CONTAINER[:12]], ids=["whole", "short"])
async def test_a_process_belongs_to_the_container_that_its_control_group_names(
    tmp_path: Path, processes: ProcProcesses, group: str, container_id: str
):
    add(tmp_path, 1, 0)
    add(tmp_path, 50, 1, group=group)
    add(tmp_path, 51, 50, group=group)

    family = await processes.families([by_container("r", container_id=container_id)], [50])

    assert family.owners == {50: ("r",), 51: ("r",)}
    assert (family.alive, family.ram_mb, family.commands) == ({"r": True}, {("r",): 8}, {50: "program 50"})
    assert await processes.has_container(container_id)


async def test_a_container_of_which_nothing_runs_is_not_alive(tmp_path: Path, processes: ProcProcesses):
    add(tmp_path, 1, 0)
    add(tmp_path, 50, 1, group=GROUPS["podman"], state="Z")

    family = await processes.families([by_container("r")], [50])

    assert (family.owners, family.alive) == ({}, {"r": False})


async def test_the_nearest_who_committed_owns_a_process(tmp_path: Path, processes: ProcProcesses):
    add(tmp_path, 10, 1)
    add(tmp_path, 11, 10)
    add(tmp_path, 12, 11)
    add(tmp_path, 13, 10)

    family = await processes.families([by_pid("outer", 10), by_pid("inner", 11)], [])

    assert family.owners == {10: ("outer",), 11: ("inner",), 12: ("inner",), 13: ("outer",)}
    assert family.ram_mb == {("outer",): 8, ("inner",): 8}


async def test_a_container_lives_although_all_in_it_is_somebody_elses(tmp_path: Path, processes: ProcProcesses):
    add(tmp_path, 50, 1, group=GROUPS["podman"])

    family = await processes.families([by_container("r"), by_pid("p", 50)], [])

    assert (family.owners, family.alive) == ({50: ("p",)}, {"r": True, "p": True})


async def test_a_process_of_nobody_and_one_that_is_not_to_be_seen_here_belong_to_nobody(
    tmp_path: Path, processes: ProcProcesses
):
    add(tmp_path, 10, 1)

    family = await processes.families([by_pid("r", 99)], [10, 4_000_000])

    assert (family.owners, family.alive, family.commands) == ({}, {"r": False}, {10: "program 10"})


async def test_what_others_descend_from_can_hold_no_reservation(tmp_path: Path, processes: ProcProcesses):
    add(tmp_path, 1, 0)
    add(tmp_path, 2, 0, flags=0x0020_8040)
    add(tmp_path, 3, 2, flags=0x0420_8060)
    add(tmp_path, 20, 1)
    add(tmp_path, 30, 20)
    add(tmp_path, 31, 30)
    add(tmp_path, 40, 1)

    refused = {pid: obstacle for pid in (1, 2, 3, 20, 30, 31, 40) if (obstacle := await processes.obstacle(pid))}

    assert refused == {
        1: "is the first process, from which all others descend",
        2: "is a thread of the kernel",
        3: "is a thread of the kernel",
        20: "is one from which the GPU orchestrator descends",
        30: "is the GPU orchestrator itself",
    }
