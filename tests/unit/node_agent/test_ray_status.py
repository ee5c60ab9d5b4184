"""What is read of `ray status`, as Ray 2.60 writes it."""

from services.node_agent.ray_status import Seen, incomplete, seen_in
from tests.fake_ray import STATUS


def test_every_active_node_and_the_gpus_of_all_are_counted():
    nodes = " 1 node_bd7068c416aa24858cc1e37b2ced8b2189281fa05ac48d4a54c71aeb\n 2 head.group"
    told = STATUS.format(now="2026-11-21 19:17:32.638880", nodes=nodes, cpus=3, gpus=12)

    assert seen_in(told) == Seen(nodes=3, gpus=12)


def test_a_node_without_gpus_is_a_node():
    told = STATUS.format(now="", nodes=" 1 node_a", cpus=1, gpus=0).replace(" 0.0/0.0 GPU\n", "")

    assert seen_in(told) == Seen(nodes=1, gpus=0)


def test_nodes_that_failed_or_are_to_come_are_not_counted():
    told = STATUS.format(now="", nodes=" (no active nodes)", cpus=1, gpus=0).replace(
        "(no pending nodes)", "10.0.0.9: ray.worker, uninitialized\n 1 ray.worker, launching"
    )

    assert seen_in(told) == Seen(nodes=0, gpus=0)


def test_what_is_lacking_is_a_sentence():
    assert incomplete(Seen(1, 4), 2, 8, 120) == "Ray has 1 of 2 nodes and 4 of 8 GPUs after 120 s."
