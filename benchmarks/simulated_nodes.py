"""Many machines of eight GPUs each, as far as NATS shows them: one process with one connection for all.

`python -m benchmarks.simulated_nodes URL NODES INTERVAL` announces NODES machines and sends the heartbeat and the
workload of each every INTERVAL seconds, spread evenly. Each line on its input is the id of a node that falls silent at
once; the answer is a line with the id and the second of the monotonic clock, which all processes of a machine share.
Says `late SECONDS` at the end of the input: by how much the latest beat missed its time.
"""

import asyncio
import json
import sys
import time
from datetime import UTC, datetime
from itertools import combinations
from typing import Any

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

GPUS = 8
ANNOUNCE_SECONDS = 60.0
TICK_SECONDS = 0.01


class SimulatedNode:
    """What one machine says."""

    def __init__(self, number: int) -> None:
        self.node_id = f"node-{number:05}"
        self._boot_id = f"boot-{number:05}"
        self._uuids = [f"GPU-{number:08x}-0000-4000-8000-{gpu:012x}" for gpu in range(GPUS)]
        self._number = number
        self._sequence = 0

    @property
    def _free_mb(self) -> int:
        return 60_000 + self._sequence % 1000

    def announcement(self, interval: float) -> bytes:
        links = [
            {"first": first, "second": second, "path": "NODE", "nvlinks": 18, "peer_access": True}
            for first, second in combinations(self._uuids, 2)
        ]
        inventory = {
            "hostname": f"host-{self._number}",
            "platform": "CUDA",
            "operating_system": "Ubuntu 24.04.3 LTS",
            "cpu": {"model": "Intel(R) Xeon(R) Platinum 8480C", "architecture": "x86_64", "cores": 112, "threads": 224},
            "memory": {"total_mb": 2_063_700, "available_mb": 1_990_000},
            "gpus": [self._gpu(index) for index in range(GPUS)],
            "gpu_links": links,
            "disks": [{"path": "/var/lib/mesh", "total_mb": 28_000_000, "free_mb": 20_000_000}],
            "network": [{"interface": "eth0", "address": "10.0.0.1", "speed_mbps": 100_000}],
            "driver_version": "580.95.05",
            "cuda_version": "13.0",
        }
        told = {"tier": "AI_FACTORY", "tier_reasons": ["81008 MiB usable per GPU, compute capability 9.0"]}
        return self._told(
            **told, labels={"rack": f"r{self._number % 40}"}, inventory=inventory, heartbeat_seconds=interval
        )

    def heartbeat(self) -> bytes:
        self._sequence += 1
        gpus = [
            {
                "uuid": uuid,
                "vram_free_mb": self._free_mb,
                "utilization_ratio": 0.4,
                "temperature_celsius": 51.0,
                "healthy": True,
            }
            for uuid in self._uuids
        ]
        return self._told(sequence=self._sequence, load_ratio=0.2, memory_available_mb=1_900_000, gpus=gpus)

    def workload(self) -> bytes:
        engine = {
            "engine_id": f"{self.node_id}-engine",
            "kind": "llama.cpp",
            "model_name": f"model-{self._number % 10}",
            "state": "READY",
            "device": "cuda",
            "url": "http://127.0.0.1:9000",
            "slots": 16,
        }
        pool = {"work_types": ["chat", "embed"], "slots": 16, "free_slots": 9}
        return self._told(slots=16, free_slots=9, work_types=["chat", "embed"], engines=[engine], pools=[pool])

    def _gpu(self, index: int) -> dict[str, Any]:
        return {
            "uuid": self._uuids[index],
            "index": index,
            "name": "NVIDIA H100 80GB HBM3",
            "vendor": "nvidia",
            "vram_total_mb": 81559,
            "vram_used_mb": 0,
            "vram_free_mb": self._free_mb,
            "vram_reserved_mb": 551,
            "compute_capability": "9.0",
            "pci_address": f"00000000:{index:02X}:00.0",
            "temperature_celsius": 34.0,
            "power_watts": 70.0,
            "power_limit_watts": 700.0,
        }

    def _told(self, **fields: Any) -> bytes:
        at = datetime.now(UTC).isoformat()
        return json.dumps({"node_id": self.node_id, "boot_id": self._boot_id, "at": at, **fields}).encode()


class Crowd:
    """All nodes, and which of them still speak."""

    def __init__(self, client: Client, count: int, interval: float) -> None:
        self._client = client
        self._interval = interval
        self._nodes = [SimulatedNode(number) for number in range(count)]
        self._silent: set[str] = set()
        self.latest = 0.0

    async def announce(self, _: Msg | None = None) -> None:
        for node in self._nodes:
            if node.node_id not in self._silent:
                await self._client.publish("compute.nodes.announce.v1", node.announcement(self._interval))

    async def beat(self) -> None:
        """Node after node, each at its own moment of the interval."""
        began, count, step = time.monotonic(), 0, self._interval / len(self._nodes)
        while True:
            due = began + count * step
            if (late := time.monotonic() - due) < 0:
                await asyncio.sleep(max(TICK_SECONDS, -late))
                continue
            self.latest = max(self.latest, late)
            await self._speak(self._nodes[count % len(self._nodes)], turn=count // len(self._nodes))
            count += 1

    async def _speak(self, node: SimulatedNode, turn: int) -> None:
        if node.node_id in self._silent:
            return
        await self._client.publish("compute.nodes.heartbeat.v1", node.heartbeat())
        await self._client.publish("compute.nodes.workload.v1", node.workload())
        if turn % max(1, round(ANNOUNCE_SECONDS / self._interval)) == 0:
            await self._client.publish("compute.nodes.announce.v1", node.announcement(self._interval))

    def silence(self, node_id: str) -> float:
        self._silent.add(node_id)
        return time.monotonic()


async def simulate(url: str, count: int, interval: float) -> None:
    client = await nats.connect(url, pending_size=64 * 1024 * 1024)
    crowd = Crowd(client, count, interval)
    await client.subscribe("compute.nodes.discover.v1", cb=crowd.announce)
    beating = asyncio.create_task(crowd.beat())
    try:
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(line.strip(), crowd.silence(line.strip()), flush=True)
        print("late", crowd.latest, flush=True)
    finally:
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
        await client.close()


if __name__ == "__main__":
    asyncio.run(simulate(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
