"""An engine that only asks Ray for its ranks, where no GPU is there for vLLM to serve with.

Run as `vllm serve … --host H --port P`: a rank on each of the cluster's GPUs, as vLLM places its own. `/health` answers
when all are there, `/ranks` with where each is.
"""

import argparse
import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import ray  # type: ignore[import-not-found,unused-ignore]  # of the engines' environment
from ray.util.placement_group import placement_group  # type: ignore[import-not-found,unused-ignore]
from ray.util.scheduling_strategies import (  # type: ignore[import-not-found,unused-ignore]
    PlacementGroupSchedulingStrategy,
)

SECONDS = 60


class Rank:
    def place(self) -> dict[str, Any]:
        context = ray.get_runtime_context()
        gpus = os.environ["CUDA_VISIBLE_DEVICES"]
        return {"node": context.get_node_id(), "pid": os.getpid(), "gpus": gpus, "address": os.environ["VLLM_HOST_IP"]}


def ranks_of(count: int) -> list[dict[str, Any]]:
    group = placement_group([{"GPU": 1}] * count, strategy="PACK")
    ray.get(group.ready(), timeout=SECONDS)
    made = []
    for number in range(count):
        where = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number)
        made.append(ray.remote(Rank).options(num_cpus=0, num_gpus=1, scheduling_strategy=where).remote())
    KEPT.extend(made)
    return ray.get([each.place.remote() for each in made], timeout=SECONDS)


KEPT: list[Any] = []
"""An actor that nobody refers to ends."""


class Door(BaseHTTPRequestHandler):
    ranks: list[dict[str, Any]]

    def do_GET(self) -> None:
        content = json.dumps(self.ranks).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--tensor-parallel-size", type=int, required=True)
    parser.add_argument("--pipeline-parallel-size", type=int, required=True)
    wanted, _ = parser.parse_known_args()
    ray.init(log_to_driver=False)  # RAY_ADDRESS says where, as for vLLM
    Door.ranks = ranks_of(wanted.tensor_parallel_size * wanted.pipeline_parallel_size)
    ThreadingHTTPServer((wanted.host, wanted.port), Door).serve_forever()


if __name__ == "__main__":
    main()
