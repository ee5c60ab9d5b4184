"""How GPUs are connected, as a matrix."""

from libs.common.contracts.node_registry import GpuLink
from services.resource_detector.topology import matrix
from tests.nodes import gpu


def test_a_pair_is_told_in_both_directions_and_the_unknown_is_null():
    link = GpuLink(first="GPU-2", second="GPU-0", path="PIX", nvlinks=4, peer_access=True)

    found = matrix([gpu(0), gpu(1), gpu(2)], [link])

    assert found.gpus == ("GPU-0", "GPU-1", "GPU-2")
    assert found.paths == ((None, None, "PIX"), (None, None, None), ("PIX", None, None))
    assert found.nvlinks == ((None, None, 4), (None, None, None), (4, None, None))
    assert found.peer_access == ((None, None, True), (None, None, None), (True, None, None))


def test_a_machine_without_gpus_has_an_empty_one():
    assert matrix([], []).paths == ()
