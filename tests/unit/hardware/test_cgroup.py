"""Limits of control groups, on recorded trees of files."""

from pathlib import Path

import psutil
import pytest

from libs.common.contracts.node_registry import Memory
from libs.hardware.cgroup import Limits, read_limits, usable_processors
from libs.hardware.inspector import Inspector
from libs.hardware.memory import read_memory, usable_memory

GIB = 1 << 30


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return root


DOCKER_V2 = {
    "proc/self/cgroup": "0::/",
    "sys/fs/cgroup/memory.max": str(8 * GIB),
    "sys/fs/cgroup/memory.current": str(3 * GIB),
    "sys/fs/cgroup/memory.swap.max": "0",
    "sys/fs/cgroup/memory.stat": f"anon 1\ninactive_file {GIB}\nactive_file 5",
    "sys/fs/cgroup/cpu.max": "150000 100000",
}
SYSTEMD_V2 = {
    "proc/self/cgroup": "0::/system.slice/mesh.service",
    "sys/fs/cgroup/system.slice/mesh.service/memory.max": str(4 * GIB),
    "sys/fs/cgroup/system.slice/mesh.service/memory.current": str(GIB),
    "sys/fs/cgroup/system.slice/mesh.service/cpu.max": "max 100000",
    "sys/fs/cgroup/system.slice/memory.max": str(2 * GIB),
    "sys/fs/cgroup/system.slice/memory.current": str(1536 << 20),
    "sys/fs/cgroup/system.slice/cpu.max": "400000 100000",
}
DOCKER_V1 = {
    "proc/self/cgroup": "12:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": str(2 * GIB),
    "sys/fs/cgroup/memory/memory.usage_in_bytes": str(GIB),
    "sys/fs/cgroup/memory/memory.stat": f"cache 7\ninactive_file 1\ntotal_inactive_file {GIB // 4}",
    "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000",
    "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
}
UNLIMITED_V1 = {
    "proc/self/cgroup": "4:memory:/session\n1:cpu:/",
    "sys/fs/cgroup/memory/session/memory.limit_in_bytes": "9223372036854771712",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
    "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
    "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
}
HYBRID = {
    "proc/self/cgroup": "4:memory:/a\n0::/b",
    "sys/fs/cgroup/memory/a/memory.limit_in_bytes": str(GIB),
    "sys/fs/cgroup/memory/a/memory.usage_in_bytes": "0",
    "sys/fs/cgroup/unified/b/cpu.max": "50000 100000",
}


@pytest.mark.parametrize(
    ("files", "limits"),
    [
        ({}, Limits()),
        ({"proc/self/cgroup": "0::/"}, Limits()),
        (DOCKER_V2, Limits(memory_bytes=8 * GIB, memory_used_bytes=2 * GIB, swap_bytes=0, processors=1.5)),
        (SYSTEMD_V2, Limits(memory_bytes=2 * GIB, memory_used_bytes=1536 << 20, processors=4.0)),
        (DOCKER_V1, Limits(memory_bytes=2 * GIB, memory_used_bytes=GIB - GIB // 4, processors=2.0)),
        (UNLIMITED_V1, Limits()),
        (HYBRID, Limits(memory_bytes=GIB, memory_used_bytes=0, processors=0.5)),
        ({"proc/self/cgroup": "garbage\n\n::::", "sys/fs/cgroup/memory.max": "many"}, Limits()),
        ({"proc/self/cgroup": "0::/../../etc", "sys/fs/cgroup/cpu.max": "1 0"}, Limits()),
    ],
    ids=["none", "empty", "docker v2", "systemd v2", "docker v1", "unlimited v1", "hybrid", "garbage", "outside"],
)
def test_the_tightest_limit_around_us_is_found(tmp_path: Path, files: dict[str, str], limits: Limits):
    assert read_limits(tree(tmp_path, files)) == limits


def test_memory_is_what_the_limit_leaves():
    limits = Limits(memory_bytes=8 * GIB, memory_used_bytes=3 * GIB, swap_bytes=0)

    memory = usable_memory(total=64 * GIB, available=50 * GIB, swap_total=GIB, swap_free=GIB, limits=limits)

    assert (memory.total_mb, memory.available_mb, memory.limit_mb) == (8192, 5120, 8192)
    assert (memory.swap_total_mb, memory.swap_free_mb) == (0, 0)


def test_a_limit_leaves_no_more_than_the_machine_has_left():
    limits = Limits(memory_bytes=8 * GIB, memory_used_bytes=GIB)

    memory = usable_memory(total=64 * GIB, available=2 * GIB, swap_total=0, swap_free=0, limits=limits)

    assert memory.available_mb == 2048


def test_a_limit_above_what_there_is_limits_nothing():
    limits = Limits(memory_bytes=128 * GIB, memory_used_bytes=GIB)

    memory = usable_memory(total=64 * GIB, available=50 * GIB, swap_total=0, swap_free=0, limits=limits)

    assert (memory.total_mb, memory.available_mb, memory.limit_mb) == (65536, 51200, None)


@pytest.mark.parametrize(
    ("present", "quota", "usable"), [(8, None, 8), (8, 1.5, 2), (8, 0.1, 1), (2, 16.0, 2), (8, 4.0, 4)]
)
def test_a_quota_keeps_whole_processors_busy(present: int, quota: float | None, usable: int):
    assert usable_processors(present, Limits(processors=quota)) == usable


def meminfo(**amounts: int) -> dict[str, str]:
    lines = [f"{name}: {amount} kB" for name, amount in amounts.items()]
    return {"proc/meminfo": "\n".join(["Cached: 7 kB", *lines, "HugePages_Total: 0", ""])}


def test_the_kernels_table_tells_memory_and_swap(tmp_path: Path):
    root = tree(tmp_path, meminfo(MemTotal=8 << 20, MemAvailable=3 << 20, SwapTotal=2 << 10, SwapFree=1 << 10))

    told = read_memory(Limits(), root)

    assert told == Memory(total_mb=8 << 10, available_mb=3 << 10, swap_total_mb=2, swap_free_mb=1)


def test_more_than_there_is_cannot_be_available(tmp_path: Path):
    root = tree(tmp_path, meminfo(MemTotal=1 << 10, MemAvailable=9 << 10, SwapTotal=0, SwapFree=0))

    assert read_memory(Limits(), root).available_mb == 1


def test_what_the_table_does_not_tell_is_asked_of_psutil(tmp_path: Path):
    root = tree(tmp_path, meminfo(MemTotal=1 << 10, MemFree=1 << 9))

    assert read_memory(Limits(), root).total_mb == psutil.virtual_memory().total >> 20


async def test_a_look_tells_what_a_whole_reading_tells(tmp_path: Path):
    files = DOCKER_V2 | meminfo(MemTotal=16 << 20, MemAvailable=15 << 20, SwapTotal=0, SwapFree=0)
    inspector = Inspector(folder=tmp_path / "kept", root=tree(tmp_path, files))
    try:
        assert inspector.memory_now() == (await inspector.memory()).value == inspector.memory_now()
        assert inspector.memory_now().limit_mb == 8 << 10
    finally:
        await inspector.close()
