"""The test model is the same everywhere, and whole or not there."""

import hashlib
from pathlib import Path

import gguf
import pytest

from services.node_agent.tiny_model import atomically, main, vocabulary


def test_the_test_model_has_the_same_bytes_every_time(tmp_path: Path):
    digests = set()
    for name in ("one", "two"):
        path = tmp_path / name / "tiny-random-llama.gguf"
        main(path)
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())

    assert len(digests) == 1


def test_the_test_model_says_what_it_is(tmp_path: Path):
    main(tmp_path / "tiny-random-llama.gguf")

    fields = gguf.GGUFReader(tmp_path / "tiny-random-llama.gguf").fields
    assert fields["general.name"].contents() == "tiny-random-llama"
    assert "nonsense" in str(fields["general.description"].contents())


def test_the_vocabulary_writes_every_byte_once():
    tokens, merges = vocabulary()

    assert len(tokens) == len(set(tokens))
    assert len(tokens) % 32 == 0
    assert all(part in tokens for merge in merges for part in merge.split(" "))


def test_a_model_that_could_not_be_written_whole_is_not_there(tmp_path: Path):
    def broken(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        atomically(tmp_path / "model.gguf", broken)

    assert not (tmp_path / "model.gguf").exists()
