"""The configuration of a gateway: what is written of served models, and what is found to be wrong."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.inference.tensorzero import OURS, Served, addresses_in, complaints, file_name, files_of, theirs

ONE = Served(model_name="Qwen/Qwen3-8B", provider="one", address="http://10.0.0.7:9001")
TWO = Served(model_name="Qwen/Qwen3-8B", provider="two", address="http://10.0.0.8:9001")
OTHER = Served(model_name="tiny", provider="tiny.1", address="http://10.0.0.7:9002/")

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)


def model_of(served: list[Served]) -> dict[str, object]:
    path = f"{OURS}/{file_name(served[0].model_name)}"
    return tomllib.loads(files_of(served)[path].decode())["models"][served[0].model_name]


def test_a_model_has_one_file_with_a_provider_for_each_engine():
    assert model_of([TWO, ONE]) == {
        "routing": ["one", "two"],
        "providers": {
            name: {
                "type": "vllm",
                "model_name": "Qwen/Qwen3-8B",
                "api_base": f"http://10.0.0.{node}:9001/v1/",
                "api_key_location": "none",
            }
            for name, node in (("one", 7), ("two", 8))
        },
    }
    assert len(files_of([ONE, TWO, OTHER])) == 3


def test_metrics_of_benchmarks_are_always_written():
    metrics = tomllib.loads(files_of([])[f"{OURS}/metrics.toml"].decode())["metrics"]
    assert metrics["compute_mesh_failed_ratio"]["optimize"] == "min"
    assert {metric["level"] for metric in metrics.values()} == {"episode"}


@given(st.lists(st.builds(Served, model_name=names, provider=names, address=st.just("http://10.0.0.7:1")), max_size=5))
def test_whatever_models_are_named_what_is_written_is_read_back_and_good(served: list[Served]):
    tree = files_of(served)
    assert complaints(tree) == []
    assert set(addresses_in(tree)) == {(each.model_name, each.provider) for each in served}


@given(names, names)
def test_names_that_differ_have_files_that_differ(one: str, other: str):
    assert (file_name(one) == file_name(other)) == (one == other)


ROUTED = '[models.m]\nrouting = ["a"]\n[models.m.providers.a]\ntype = "vllm"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = [", "it is not TOML"),
        ("x = '\udcff'", "it is not TOML"),
        ("[models.m]", "routing must name at least one provider"),
        ('[models.m]\nrouting = ["a"]', "there is no such provider"),
        (f'{ROUTED}[models.m.providers.b]\ntype = "vllm"', "'b' is not in routing"),
        (ROUTED.replace("vllm", "ours"), "of no known type: 'ours'"),
        ('[functions.f]\ntype = "chat"', "functions.f has no variants"),
        ('[functions.f.variants.v]\ntype = "chat_completion"\nmodel = "n"', "no model is named 'n'"),
        ('[metrics.x]\ntype = "floaty"', "metrics.x.type must be one of"),
        ("[metrics.compute_mesh_failed_ratio]\ntype = 'float'", "compute_mesh_failed_ratio.type is in compute_mesh/"),
        ("models = 3", "models is in compute_mesh/"),
    ],
)
def test_what_a_gateway_would_not_start_with_is_told_with_its_file(text: str, words: str):
    tree = {**files_of([ONE]), "own.toml": text.encode(errors="surrogateescape")}
    (found,) = complaints(tree)
    assert found.path == "own.toml"
    assert words in found.message


def test_shorthands_and_models_of_other_files_are_known():
    function = '[functions.f.variants.v]\ntype = "chat_completion"\nmodel = "%s"'
    for name in ("openai::gpt-4o", "Qwen/Qwen3-8B"):
        assert complaints({**files_of([ONE]), "own.toml": (function % name).encode()}) == []


def test_addresses_are_found_again_also_beside_what_cannot_be_read():
    tree = {**files_of([ONE]), f"{OURS}/model-broken.toml": b"x = [", "own.toml": b""}
    assert addresses_in(tree) == {("Qwen/Qwen3-8B", "one"): "http://10.0.0.7:9001"}
    assert theirs(tree) == {"own.toml": b""}
