"""Sizes from the headers of weight files."""

import pytest

from libs.common.errors import Malformed
from libs.inference.planner.fields import Unsupported
from libs.inference.planner.headers import safetensors_tensors


def test_a_safetensors_header_says_how_large_each_tensor_is():
    header = {"__metadata__": {"format": "pt"}, "w": {"dtype": "BF16", "shape": [3, 5], "data_offsets": [10, 40]}}

    assert [(tensor.name, tensor.size) for tensor in safetensors_tensors(header)] == [("w", 30)]


def test_offsets_that_contradict_the_shape_are_refused():
    with pytest.raises(Malformed, match=r"w\.data_offsets must span 30 bytes"):
        safetensors_tensors({"w": {"dtype": "BF16", "shape": [3, 5], "data_offsets": [0, 29]}})


def test_an_unknown_type_is_refused_by_the_name_of_its_tensor():
    with pytest.raises(Unsupported) as refused:
        safetensors_tensors({"w": {"dtype": "F3", "shape": [8], "data_offsets": [0, 3]}})

    assert refused.value.details["field"] == "w.dtype"
