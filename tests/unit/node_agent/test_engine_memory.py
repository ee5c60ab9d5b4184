"""What an engine of llama.cpp takes is read from its file, and a file that says nothing is no reason to fail."""

from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.common.contracts.gpu_orchestrator import MOST_MB
from services.node_agent.engine_gguf import ram_mb_of
from services.node_agent.engine_memory import WORKING_MB, Shape, engine_ram_mb, shape_of
from services.node_agent.tiny_model import main

MIB = 2**20


def file_of(path: Path, *, heads: int | Sequence[int], head_size: int | None = None) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(4)
    writer.add_embedding_length(1024)
    writer.add_head_count(8)
    writer.add_head_count_kv(heads)
    if head_size:
        writer.add_key_length(head_size)
        writer.add_value_length(head_size)
    writer.add_token_list(["a", "bc", ""])
    writer.add_tensor("x", np.zeros(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("heads", "head_size", "kv_bytes"),
    [
        (2, None, 4 * 2 * (128 + 128) * 2),
        (2, 64, 4 * 2 * (64 + 64) * 2),
        ([2, 0, 2, 0], None, 4 * (128 + 128) * 2),
    ],
)
def test_what_a_token_takes_is_that_of_all_layers(
    tmp_path: Path, heads: int | Sequence[int], head_size: int | None, kv_bytes: int
):
    content = file_of(tmp_path / "m.gguf", heads=heads, head_size=head_size).read_bytes()

    assert shape_of(memoryview(content)) == Shape(kv_bytes=kv_bytes, vocabulary=3)


def test_file_context_and_last_layer_are_added_up():
    shape = Shape(kv_bytes=1024, vocabulary=1024)

    assert engine_ram_mb(100 * MIB, shape, 2048) == WORKING_MB + 100 + 2 + 2


def test_a_file_that_does_not_say_counts_twice(tmp_path: Path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + bytes(3 * MIB))

    assert ram_mb_of(path, 10**6) == WORKING_MB + 7


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_file_however_damaged_makes_it_fail(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    path = tmp_path_factory.mktemp("m") / "tiny.gguf"
    main(path)
    content = bytearray(path.read_bytes()[:4096])
    for place in data.draw(st.lists(st.integers(0, 800), max_size=8)):
        content[place] = data.draw(st.integers(0, 255))
    found = shape_of(memoryview(bytes(content[: data.draw(st.integers(0, 4096))])))

    assert found is None or found.kv_bytes >= 0
    assert WORKING_MB <= engine_ram_mb(len(content), found, 8192) <= MOST_MB
