"""Models from a folder, from the cache of a hub's clients, and from a hub."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from libs.common.errors import Malformed, Unavailable
from libs.inference.planner.llama import gguf_facts
from services.node_agent import tiny_model
from services.vllm_orchestrator.models import GatedModel, UnknownModel
from services.vllm_orchestrator.models_files import FileModels
from services.vllm_orchestrator.models_hub import HubModels
from tests.integration.vllm_orchestrator.hub import GATED, TOKEN, Hub, hub, weights

CONFIG = {"architectures": ["LlamaForCausalLM"], "hidden_size": 8}
SHAPES = {"model.embed_tokens.weight": (64, 8), "lm_head.weight": (64, 8)}
MODEL = "owner/model"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Hub]:
    with hub(tmp_path / "hub") as started:
        yield started


@asynccontextmanager
async def models(
    url: str, tmp_path: Path, *, token: str = "", offline: bool = False, cache: Path | None = None
) -> AsyncIterator[HubModels]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with httpx.AsyncClient(headers=headers, timeout=5, trust_env=False, follow_redirects=True) as client:
        files = FileModels(tmp_path / "folder", cache)
        yield HubModels(client, files, endpoint=url, offline=offline, kept=tmp_path / "kept")


def put(folder: Path, **documents: object) -> Path:
    """Writes documents; `__` stands for a dot in their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, document in documents.items():
        content = document if isinstance(document, bytes) else json.dumps(document).encode()
        (folder / name.replace("__", ".")).write_bytes(content)
    return folder


async def test_a_model_of_a_hub_is_read_by_its_headers_alone(server: Hub, tmp_path: Path):
    large = weights({**SHAPES, "model.layers.0.mlp.up_proj.weight": (4096, 1024)})
    put(server.folder / MODEL, config__json=CONFIG, model__safetensors=large)

    async with models(server.url, tmp_path) as source:
        found = await source.read(MODEL, None)

    assert found.config == CONFIG
    assert sum(tensor.size for tensor in found.tensors) == 2 * (64 * 8 * 2 + 4096 * 1024)
    assert server.sent < 100_000 < len(large)


async def test_a_header_that_is_longer_than_the_first_part_is_read_to_its_end(server: Hub, tmp_path: Path):
    put(server.folder / MODEL, config__json=CONFIG, model__safetensors=weights(SHAPES, padding=200_000))

    async with models(server.url, tmp_path) as source:
        assert len((await source.read(MODEL, None)).tensors) == 2


async def test_a_model_of_several_files_is_the_sum_of_them(server: Hub, tmp_path: Path):
    one, other = (weights({name: shape}) for name, shape in SHAPES.items())
    index = {"weight_map": {"a": "one.safetensors", "b": "other.safetensors", "c": "../../elsewhere"}}
    put(server.folder / MODEL, config__json=CONFIG, one__safetensors=one, other__safetensors=other)
    (server.folder / MODEL / "model.safetensors.index.json").write_text(json.dumps(index))

    async with models(server.url, tmp_path) as source:
        found = await source.read(MODEL, None)

    assert {tensor.name for tensor in found.tensors} == set(SHAPES)


async def test_without_weight_files_a_model_is_known_by_its_configuration(server: Hub, tmp_path: Path):
    put(server.folder / MODEL, config__json=CONFIG, hf_quant_config__json={"quantization": {"quant_algo": "FP8"}})

    async with models(server.url, tmp_path) as source:
        found = await source.read(MODEL, None)

    assert found.tensors == ()
    assert found.quantisation == {"quantization": {"quant_algo": "FP8"}}


async def test_what_did_not_change_is_not_fetched_again(server: Hub, tmp_path: Path):
    put(server.folder / MODEL, config__json=CONFIG, model__safetensors=weights(SHAPES))

    async with models(server.url, tmp_path) as source:
        first = await source.read(MODEL, None)
        server.asked.clear()
        again = await source.read(MODEL, None)

    assert again == first
    assert server.asked == [f"/{MODEL}/resolve/main/config.json"]


@pytest.mark.parametrize("offline", [True, False])
async def test_what_was_once_read_is_known_without_the_hub(server: Hub, tmp_path: Path, offline: bool):
    put(server.folder / MODEL, config__json=CONFIG)
    async with models(server.url, tmp_path) as source:
        first = await source.read(MODEL, None)

    async with models("http://127.0.0.1:1", tmp_path, offline=offline) as source:
        assert await source.read(MODEL, None) == first


async def test_a_hub_that_cannot_be_reached_is_told_as_away(tmp_path: Path):
    async with models("http://127.0.0.1:1", tmp_path) as source:
        with pytest.raises(Unavailable, match="cannot be asked"):
            await source.read(MODEL, None)


async def test_offline_an_unknown_model_is_not_asked_for(server: Hub, tmp_path: Path):
    async with models(server.url, tmp_path, offline=True) as source:
        with pytest.raises(UnknownModel, match="HF_HUB_OFFLINE"):
            await source.read(MODEL, None)

    assert server.asked == []


async def test_a_gated_model_needs_a_token(server: Hub, tmp_path: Path):
    put(server.folder / GATED, config__json=CONFIG)

    async with models(server.url, tmp_path) as source:
        with pytest.raises(GatedModel, match="HF_TOKEN"):
            await source.read(GATED, None)
    async with models(server.url, tmp_path, token=TOKEN) as source:
        assert (await source.read(GATED, None)).config == CONFIG


async def test_a_model_that_nobody_knows_is_unknown(server: Hub, tmp_path: Path):
    async with models(server.url, tmp_path) as source:
        with pytest.raises(UnknownModel, match="knows no model"):
            await source.read("owner/nothing", None)


@pytest.mark.parametrize(
    ("documents", "words"),
    [
        ({}, "has no config.json"),
        ({"config__json": b"{"}, "is not JSON"),
        ({"config__json": [1]}, "must be a JSON object"),
        ({"config__json": CONFIG, "model__safetensors": b"\xff" * 64}, "no safetensors file"),
        ({"config__json": CONFIG, "model__safetensors": b"short"}, "too short"),
    ],
)
async def test_broken_documents_are_told_as_such(server: Hub, tmp_path: Path, documents: dict[str, object], words: str):
    put(server.folder / MODEL, **documents)

    async with models(server.url, tmp_path) as source:
        with pytest.raises(Malformed, match=words):
            await source.read(MODEL, None)


@pytest.mark.parametrize("name", ["my model", "a/b/c", "../secret", "owner/", "", "a--b", "-a", "owner/na me"])
async def test_a_name_that_no_hub_has_is_not_asked_for(server: Hub, tmp_path: Path, name: str):
    async with models(server.url, tmp_path) as source:
        with pytest.raises(Malformed, match="model_name must be like"):
            await source.read(name, None)

    assert server.asked == []


@pytest.mark.parametrize("revision", ["../../../elsewhere", "/etc"])
async def test_a_revision_does_not_lead_out_of_its_folder(server: Hub, tmp_path: Path, revision: str):
    async with models(server.url, tmp_path, cache=tmp_path / "cache") as source:
        with pytest.raises(Malformed, match="revision must be"):
            await source.read(MODEL, revision)

    assert server.asked == []


@pytest.mark.parametrize("named", ["mine", "deep/mine", "my model"])
async def test_a_folder_of_models_comes_before_the_hub(server: Hub, tmp_path: Path, named: str):
    place = put(tmp_path / "folder" / named, config__json=CONFIG, model__safetensors=weights(SHAPES))

    async with models(server.url, tmp_path) as source:
        by_name, by_path = await source.read(named, None), await source.read(str(place), None)

    assert by_name.config == by_path.config == CONFIG
    assert len(by_path.tensors) == 2
    assert by_name.place == by_path.place == str(place)
    assert server.asked == []


@pytest.mark.parametrize("inside", [False, True])
async def test_a_path_outside_of_the_folder_of_models_is_not_read(server: Hub, tmp_path: Path, inside: bool):
    outside = put(tmp_path / "outside", config__json=CONFIG)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(outside)
    named = tmp_path / "folder" / "link" if inside else outside

    async with models(server.url, tmp_path) as source:
        with pytest.raises(Malformed, match="inside the folder of models"):
            await source.read(str(named), None)


async def test_the_cache_of_the_hubs_own_clients_is_read(server: Hub, tmp_path: Path):
    kept = tmp_path / "cache" / "models--owner--model"
    put(kept / "snapshots" / "abc", config__json=CONFIG)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("abc")

    async with models(server.url, tmp_path, offline=True, cache=tmp_path / "cache") as source:
        assert (await source.read(MODEL, None)).config == CONFIG
        assert (await source.read(MODEL, "abc")).config == CONFIG


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    tiny_model.main(path)
    return path.read_bytes()


async def test_a_gguf_file_of_a_hub_is_read_by_its_header_alone(server: Hub, tmp_path: Path, gguf: bytes):
    put(server.folder / MODEL, tiny__gguf=gguf + bytes(20 * 2**20))
    async with models(server.url, tmp_path) as source:
        facts = gguf_facts(await source.read_gguf(MODEL, "tiny.gguf", None))
    assert (facts.layers, facts.kv_heads, facts.max_position) == (2, (2, 2), 4096)
    assert server.sent < 2 * 2**20


async def test_a_gguf_file_is_found_in_the_folder_of_models_first_also_in_parts(
    server: Hub, tmp_path: Path, gguf: bytes
):
    names = ("big-00001-of-00002.gguf", "big-00002-of-00002.gguf")
    put(tmp_path / "folder" / "owner" / "model", **dict.fromkeys(names, gguf))
    async with models(server.url, tmp_path) as source:
        whole = await source.read_gguf(MODEL, names[1], None)
        assert whole == await source.read_gguf("", str(tmp_path / "folder" / "owner" / "model" / names[0]), None)
    assert (server.asked, whole.weight_bytes % 2, len(whole.tensors) % 2) == ([], 0, 0)


@pytest.mark.parametrize(
    ("name", "file", "raised", "words"),
    [
        (MODEL, "no.gguf", Malformed, "has no file no.gguf"),
        (MODEL, "../tiny.gguf", Malformed, "gguf_file must be like"),
        (MODEL, "tiny.bin", Malformed, "gguf_file must be like"),
        (MODEL, "short.gguf", Malformed, "is cut off"),
        (MODEL, "empty.gguf", Malformed, "is cut off"),
        (MODEL, "text.gguf", Malformed, "does not begin with GGUF"),
        ("owner/unknown", "tiny.gguf", UnknownModel, "knows no model"),
        (GATED, "tiny.gguf", GatedModel, "gated"),
        ("", "/etc/passwd", Malformed, "ram_mb is wanted"),
    ],
)
async def test_what_is_no_gguf_file_of_a_model_is_told(
    server: Hub, tmp_path: Path, gguf: bytes, name: str, file: str, raised: type[Exception], words: str
):
    put(server.folder / MODEL, short__gguf=gguf[:5000], empty__gguf=b"", text__gguf=b"weights")
    put(server.folder / GATED, tiny__gguf=gguf)
    async with models(server.url, tmp_path) as source:
        with pytest.raises(raised, match=words):
            await source.read_gguf(name, file, None)


async def test_a_gguf_file_that_ends_before_its_tensors_is_told(server: Hub, tmp_path: Path, gguf: bytes):
    put(tmp_path / "folder" / "tiny", tiny__gguf=gguf[:-1])
    async with models(server.url, tmp_path) as source:
        with pytest.raises(Malformed, match=f"its tensors end at byte {len(gguf)}"):
            await source.read_gguf("tiny", "tiny.gguf", None)


async def test_offline_only_gguf_files_that_are_here_are_known(server: Hub, tmp_path: Path, gguf: bytes):
    put(server.folder / MODEL, tiny__gguf=gguf)
    async with models(server.url, tmp_path, offline=True) as source:
        with pytest.raises(UnknownModel, match="HF_HUB_OFFLINE"):
            await source.read_gguf(MODEL, "tiny.gguf", None)
    assert server.asked == []
