"""GGUF headers: whole ones, cut off ones, broken ones, and what llama.cpp takes with them."""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf import GGUFReader
from gguf.constants import GGML_QUANT_SIZES
from hypothesis import given
from hypothesis import strategies as st

from libs.common.errors import Malformed, MeshError
from libs.inference.planner.devices import Node
from libs.inference.planner.fields import Unsupported
from libs.inference.planner.gguf import TYPES, GgufHeader, HeaderCutOff, LongList, gguf_header, joined, parts_of
from libs.inference.planner.headers import GGUF_BLOCKS, StoredTensor
from libs.inference.planner.llama import GgufFacts, gguf_facts, llama_need, plan_llama
from services.node_agent import tiny_model
from tests.unit.inference.planner.published import LLAMA_8B_GGUF

GIB = 2**30


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    tiny_model.main(made)
    return made


@pytest.fixture(scope="module")
def content(path: Path) -> bytes:
    return path.read_bytes()


def metadata_text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def file_of(*fields: tuple[str, int, bytes], tensors: bytes = b"", count: int = 0, version: int = 3) -> bytes:
    start = b"GGUF" + struct.pack("<IQQ", version, count, len(fields))
    return (
        start
        + b"".join(metadata_text(name) + struct.pack("<I", kind) + value for name, kind, value in fields)
        + tensors
    )


def tensor(name: str = "t", shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return metadata_text(name) + dimensions + struct.pack("<IQ", kind, offset)


def refusal(holds: Callable[[], bool]) -> MeshError | None:
    """How it is refused; None where it is read, and `holds`."""
    try:
        assert holds()
    except MeshError as error:
        return error
    return None


def test_every_type_is_as_large_as_ggml_says():
    ours = {number: GGUF_BLOCKS[name] for number, name in TYPES.items()}
    assert ours == {kind.value: size for kind, size in GGML_QUANT_SIZES.items()}


def test_a_header_says_what_another_reader_says(path: Path, content: bytes):
    header, other = gguf_header(content, "tiny"), GGUFReader(path)
    assert {each.name: each.size for each in header.tensors} == {each.name: each.n_bytes for each in other.tensors}
    assert header.file_bytes == len(content)
    assert header.metadata["llama.attention.head_count_kv"] == 2
    assert header.metadata["tokenizer.ggml.model"] == "gpt2"


def test_the_header_is_all_that_is_read(content: bytes):
    with pytest.raises(HeaderCutOff) as cut_off:
        gguf_header(content[:5000], "tiny")
    assert 5000 < cut_off.value.wanted < len(content)


@given(data=st.data())
def test_every_cut_is_told_with_how_much_is_wanted_at_least(content: bytes, data: st.DataObject):
    whole = gguf_header(content, "tiny")
    length = data.draw(st.integers(0, 12_000))
    refused = refusal(lambda: gguf_header(content[:length], "tiny") == whole)
    if refused is not None:
        assert isinstance(refused, HeaderCutOff)
        assert length < refused.wanted <= len(content)


@given(data=st.data())
def test_whatever_is_broken_is_refused_in_a_sentence_or_read(content: bytes, data: st.DataObject):
    broken = bytearray(content[:12_000])
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, 11_999), st.integers(0, 255)), max_size=8)):
        broken[place] = value
    refused = refusal(lambda: gguf_facts(gguf_header(bytes(broken), "tiny")).weight_bytes >= 0)
    assert refused is None or len(refused.message) < 500


@given(st.binary(max_size=300))
def test_any_bytes_after_the_magic_are_refused_in_a_sentence_or_read(noise: bytes):
    refused = refusal(lambda: gguf_header(b"GGUF" + noise, "noise").file_bytes >= 0)
    assert refused is None or "noise" in refused.message


HUGE = 2**62


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"GGML" + bytes(40), "does not begin with GGUF"),
        (file_of(version=1), "its version is 1"),
        (file_of(version=3 << 24), "little-endian"),
        (file_of(count=HUGE), "tensors, more than"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, HUGE), "fields, more than"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, HUGE), "a text in it would have"),
        (file_of(("a", 99, b"")), "of no known type: 99"),
        (file_of(("a", 9, struct.pack("<IQ", 4, HUGE))), "a list in it would have"),
        (file_of(("a", 9, struct.pack("<IQ", 9, 1) * 9)), "nested deeper"),
        (file_of(("a", 4, bytes(4)), ("a", 4, bytes(4))), "a is in it twice"),
        (file_of(("general.alignment", 4, struct.pack("<I", 7))), "multiple of 8, not 7"),
        (file_of(tensors=tensor() * 2, count=2), "the tensor t is in it twice"),
        (file_of(tensors=tensor(shape=(1, 1, 1, 1, 1)), count=1), "has 5 dimensions"),
        (file_of(tensors=tensor(shape=(48,), kind=8), count=1), "rows of 48 weights, and Q8_0 blocks of 32"),
        (file_of(tensors=tensor(offset=3), count=1), "would be at byte 3"),
        (file_of(tensors=tensor(shape=(2**40, 2**40)), count=1), "would be at byte 0"),
    ],
)
def test_what_is_no_header_is_refused_with_what_is_wrong(content: bytes, words: str):
    with pytest.raises(Malformed, match=words):
        gguf_header(content, "broken")


def test_a_tensor_of_an_unknown_type_is_named():
    with pytest.raises(Unsupported, match="the tensor t is of type 31"):
        gguf_header(file_of(tensors=tensor(kind=31), count=1), "x")


def test_long_lists_are_passed_over():
    long = struct.pack("<IQ", 8, 5000) + metadata_text("token") * 5000
    header = gguf_header(file_of(("tokens", 9, long), ("short", 9, struct.pack("<IQ3I", 4, 3, 1, 2, 3))), "x")
    assert header.metadata == {"tokens": LongList(5000), "short": (1, 2, 3)}


def test_the_files_of_a_split_model_are_found_by_any_of_them():
    assert parts_of("a-00002-of-00002.gguf") == ("a-00001-of-00002.gguf", "a-00002-of-00002.gguf")
    assert parts_of("a.gguf") == ("a.gguf",)
    one = GgufHeader(metadata={"a": 1}, tensors=(StoredTensor(name="x", type="F32", shape=(1,), size=4),), file_bytes=9)
    assert joined([one, one]).weight_bytes == 8


def facts(**changes: object) -> GgufFacts:
    weights = StoredTensor(name="w", type="Q4_K", shape=(1,), size=4 * GIB)
    changed = {name: value for name, value in (LLAMA_8B_GGUF | changes).items() if value is not None}
    return gguf_facts(GgufHeader(metadata=changed, tensors=(weights,), file_bytes=0))


def test_keys_and_values_of_every_layer_are_counted_in_16_bits():
    need = llama_need(facts(), context=8192, slots=1)
    assert need.kv_cache == GIB  # llama.cpp of an 8B Llama 3: "KV buffer size = 1024.00 MiB" with 8192 cells
    assert need.compute >= 258.5 * 2**20  # "compute buffer size = 258.50 MiB"
    assert llama_need(facts(), context=8000, slots=4).kv_cache == 4 * GIB


def test_layers_may_differ_and_those_without_keys_keep_a_state():
    state = {"llama.ssm.inner_size": 2048, "llama.ssm.state_size": 128, "llama.ssm.conv_kernel": 4}
    hybrid = facts(**{"llama.attention.head_count_kv": (0, 8) * 16, **state})
    assert hybrid.cell_bytes == facts().cell_bytes // 2
    assert hybrid.state_bytes == 16 * 4 * (3 * 2048 + 128 * 2048)
    assert hybrid.doubts == ()


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("general.architecture", None, "general.architecture must be a word"),
        ("llama.block_count", None, "block_count must be a whole number"),
        ("llama.block_count", 0, "block_count must be a whole number of at least 1"),
        ("llama.context_length", "long", "context_length must be"),
        ("llama.attention.head_count", None, "attention.head_count must be"),
        ("llama.attention.head_count_kv", (1, 2), "attention.head_count_kv must have 32"),
        ("llama.attention.head_count_kv", LongList(9000), "attention.head_count_kv must be a list"),
        ("llama.vocab_size", None, "vocab_size must be"),
    ],
)
def test_a_field_that_is_missing_or_wrong_is_named(field: str, value: object, words: str):
    with pytest.raises(Malformed, match=words):
        facts(**{field: value})


def node(gib: float, name: str = "a") -> Node:
    return Node(node_id=name, ram=int(gib * GIB))


def test_a_plan_takes_the_longest_context_that_fits():
    plan = plan_llama(facts(), [node(5), node(4, "b")], context=None, slots=1)
    assert (plan.node_id, plan.missing, plan.context % 256) == ("a", "", 0)
    assert plan.need.total <= 5 * GIB < llama_need(facts(), context=plan.context + 256, slots=1).total
    assert plan_llama(facts(), [node(64)], context=None, slots=1).context == 8192


def test_a_plan_that_does_not_fit_says_what_would():
    plan = plan_llama(facts(), [node(6)], context=8192, slots=4)
    assert "and a has 6.00 GiB free" in plan.missing
    assert plan.slots_that_fit == 1
    assert plan.context_that_fits is not None
    assert llama_need(facts(), context=plan.context_that_fits, slots=4).total <= 6 * GIB
    hopeless = plan_llama(facts(), [node(1)], context=None, slots=1)
    assert (hopeless.slots_that_fit, hopeless.context_that_fits) == (None, None)
    assert hopeless.missing
