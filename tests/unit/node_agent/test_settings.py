"""A wrong setting is told in one sentence that says what to change."""

from pathlib import Path

import pytest

from libs.common.errors import WrongSetting
from libs.common.kit.settings import load
from services.node_agent.runner_function import load_functions
from services.node_agent.settings import Settings


def test_without_settings_the_test_model_is_served():
    settings = load(Settings, {})

    assert settings.model is None
    assert (settings.port, settings.engine_slots, settings.functions) == (8120, 4, {})


def test_a_model_that_does_not_exist_is_named(tmp_path: Path):
    missing = str(tmp_path / "missing.gguf")

    with pytest.raises(WrongSetting) as wrong:
        load(Settings, {"MODEL": missing})

    assert wrong.value.message == (
        f"MODEL is {missing!r}; there is no such file; it must be the path of a GGUF file, or not be set."
    )


def test_a_model_that_is_no_gguf_file_is_named(tmp_path: Path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04")

    with pytest.raises(WrongSetting, match=r"^MODEL is .*; that file is not a GGUF file"):
        load(Settings, {"MODEL": str(path)})


def test_a_folder_is_no_model(tmp_path: Path):
    with pytest.raises(WrongSetting, match=r"^MODEL is .*; there is no such file"):
        load(Settings, {"MODEL": str(tmp_path)})


def test_functions_are_listed_by_name():
    settings = load(Settings, {"AGENT_FUNCTIONS": "one=json:dumps, two=os.path:join"})

    assert settings.functions == {"one": "json:dumps", "two": "os.path:join"}


@pytest.mark.parametrize("value", ["dumps", "x=json", "x=json:", "=json:dumps", "x=json:dumps:more"])
def test_a_function_in_another_form_is_named(value: str):
    with pytest.raises(WrongSetting, match=r"AGENT_FUNCTIONS .* name=module:function"):
        load(Settings, {"AGENT_FUNCTIONS": value})


@pytest.mark.parametrize("place", ["no_such_module:f", "json:no_such_function", "json:__name__"])
def test_a_function_that_is_not_there_is_named(place: str):
    with pytest.raises(WrongSetting, match=f"AGENT_FUNCTIONS names f={place}"):
        load_functions({"f": place}, variable="AGENT_FUNCTIONS")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ENGINE_HOST", "localhost", "is no address such as 127.0.0.1"),
        ("ENGINE_API_KEY", "two words", "printable characters"),
        ("ENGINE_ADDRESS", "http://here", "ENGINE_ADDRESS"),
    ],
)
def test_an_address_or_a_key_that_engines_cannot_have_is_named(name: str, value: str, said: str):
    with pytest.raises(WrongSetting, match=said):
        load(Settings, {name: value})
