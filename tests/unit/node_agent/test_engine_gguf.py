"""What an engine of llama.cpp takes is what the planner says of its file; a file that says nothing is no fault."""

from pathlib import Path

import pytest

from libs.common.errors import Unavailable
from libs.inference.planner.gguf import gguf_header
from libs.inference.planner.llama import MIB, gguf_facts, llama_need
from services.node_agent.engine_gguf import ram_mb_of
from services.node_agent.tiny_model import main


@pytest.mark.parametrize("first_bytes", [16, 2**20])
def test_it_is_what_the_planner_says_however_often_the_file_is_read(
    tmp_path: Path, first_bytes: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("services.node_agent.engine_gguf.FIRST_BYTES", first_bytes)
    path = tmp_path / "tiny.gguf"
    main(path)
    need = llama_need(gguf_facts(gguf_header(path.read_bytes(), "tiny")), context=1000, slots=3)

    assert ram_mb_of(path, slots=3, context=1000) == -(-need.total // MIB)


@pytest.mark.parametrize("content", [b"GGUF" + bytes(3 * MIB), b"no model" * 2**17, b""])
def test_a_file_that_does_not_say_counts_twice(tmp_path: Path, content: bytes):
    path = tmp_path / "m.gguf"
    path.write_bytes(content)

    assert ram_mb_of(path, slots=4, context=10**6) == 128 + -(-2 * len(content) // MIB)


def test_a_model_that_is_split_counts_with_all_its_parts(tmp_path: Path):
    for number in (1, 2):
        (tmp_path / f"m-0000{number}-of-00002.gguf").write_bytes(b"x" * MIB)

    assert ram_mb_of(tmp_path / "m-00001-of-00002.gguf", slots=1, context=1) == 128 + 4


def test_a_file_that_is_not_there_is_told(tmp_path: Path):
    with pytest.raises(Unavailable, match="cannot be read"):
        ram_mb_of(tmp_path / "none.gguf", slots=1, context=1)
