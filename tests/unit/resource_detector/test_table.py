"""An inventory for a person."""

from libs.common.contracts.node_registry import Disk, NetworkAddress, Problem
from libs.hardware.tiers import classify
from services.resource_detector.table import rows
from tests.nodes import gpu, inventory


def test_everything_that_was_found_is_in_the_table():
    found = inventory(
        gpu(0),
        gpu(1, healthy=False, problem="Xid 79"),
        gpu(2, name="NVIDIA GB10", vram_total_mb=None, unified_memory=True),
        disks=(Disk(path="/models", total_mb=100, free_mb=7),),
        network=(NetworkAddress(interface="eth0", address="10.0.0.2", speed_mbps=1000),),
        driver_version="570",
        problems=(Problem(source="amd", message="broken"),),
    )

    lines = [" ".join(row) for row in rows(found, classify(found))]

    for words in (
        "Tier AI_FACTORY: NVIDIA GB10",
        "GPU 0 NVIDIA GeForce RTX 4090, compute capability 8.9",
        "23100 of 24564 MiB free",
        "NOT USABLE: Xid 79",
        "uses the machine's own memory",
        "Disk /models: 7 of 100 MiB free",
        "Network eth0 10.0.0.2, 1000 Mbit/s",
        "NVIDIA driver 570, CUDA unknown",
        "Problem amd: broken",
    ):
        assert any(words in line for line in lines), words
