"""Settings: read from names people know; a wrong one is told in one sentence."""

import math
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from libs.common.errors import WrongSetting
from libs.common.kit.settings import PlatformSettings, environment_names, load


class Work(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="WORK_MARSHALING_", frozen=True, extra="ignore")

    port: int = Field(8118, ge=0, le=65535, description="Where the HTTP door is.")
    retry_max: int = Field(3, ge=0, le=99, validation_alias="WORK_RETRY_MAX", description="How often.")
    delay_seconds: float = Field(
        5, gt=0, validation_alias=AliasChoices("WORK_RETRY_DELAY", "WORK_RETRY_DELAY_SECONDS"), description="How long."
    )
    mode: Literal["fast", "safe"] = Field("safe", description="How.")
    labels: list[str] = Field(default=[], description="Which.")
    secret: SecretStr | None = Field(None, min_length=12, description="Whose.")
    enabled: bool = Field(False, description="Whether.")


WORK_NAMES = [name for variable in environment_names(Work) for name in (variable.name, *variable.also)]


def refusal(settings: type[BaseSettings], **environment: str) -> str:
    with pytest.raises(WrongSetting) as refused:
        load(settings, environment)
    return refused.value.message


def test_defaults_hold_where_nothing_is_set() -> None:
    assert load(Work, {}).port == 8118


def test_a_prefix_leads_to_the_field() -> None:
    assert load(Work, {"WORK_MARSHALING_PORT": "9000"}).port == 9000


def test_a_name_of_its_own_wins_over_the_prefix() -> None:
    loaded = load(Work, {"WORK_RETRY_MAX": "7", "WORK_MARSHALING_RETRY_MAX": "8"})
    assert loaded.retry_max == 7


def test_an_older_name_still_works() -> None:
    assert load(Work, {"WORK_RETRY_DELAY_SECONDS": "2"}).delay_seconds == 2


def test_a_variable_that_is_empty_counts_as_not_set() -> None:
    assert load(Work, {"WORK_RETRY_MAX": "", "WORK_MARSHALING_MODE": " "}).retry_max == 3


@pytest.mark.parametrize("text", ["a,b", " a , b ,", '["a", "b"]'])
def test_a_list_is_separated_by_commas_or_is_json(text: str) -> None:
    assert load(Work, {"WORK_MARSHALING_LABELS": text}).labels == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("WORK_RETRY_MAX", "many", "WORK_RETRY_MAX is 'many'; it must be a whole number from 0 to 99."),
        ("WORK_RETRY_MAX", "100", "WORK_RETRY_MAX is '100'; it must be a whole number from 0 to 99."),
        ("WORK_RETRY_DELAY", "0", "WORK_RETRY_DELAY is '0'; it must be a number, greater than 0."),
        ("WORK_RETRY_DELAY", "nan", "WORK_RETRY_DELAY is 'nan'; it must be a number, greater than 0."),
        ("WORK_RETRY_DELAY", "inf", "WORK_RETRY_DELAY is 'inf'; it must be a number, greater than 0."),
        (
            "WORK_RETRY_DELAY_SECONDS",
            "x",
            "WORK_RETRY_DELAY_SECONDS is 'x'; it must be a number, greater than 0.",
        ),
        ("WORK_MARSHALING_MODE", "odd", "WORK_MARSHALING_MODE is 'odd'; it must be fast or safe."),
        ("WORK_MARSHALING_ENABLED", "maybe", "WORK_MARSHALING_ENABLED is 'maybe'; it must be true or false."),
    ],
)
def test_a_wrong_value_is_told_with_its_name_and_what_is_allowed(name: str, value: str, sentence: str) -> None:
    assert refusal(Work, **{name: value}) == sentence


def test_every_wrong_variable_has_its_sentence() -> None:
    told = refusal(Work, WORK_RETRY_MAX="x", WORK_MARSHALING_PORT="y")
    assert told.split("\n") == [
        "WORK_MARSHALING_PORT is 'y'; it must be a whole number from 0 to 65535.",
        "WORK_RETRY_MAX is 'x'; it must be a whole number from 0 to 99.",
    ]


def test_secrets_are_not_shown() -> None:
    told = refusal(Work, WORK_MARSHALING_SECRET="hunter2")
    assert told == (
        "WORK_MARSHALING_SECRET has a value that is not allowed; it must be text, at least 12 characters long."
    )


def test_a_password_in_an_address_is_not_shown() -> None:
    assert "hunter2" not in refusal(PlatformSettings, NATS_URL="http://me:hunter2@there")


def test_a_missing_variable_is_told() -> None:
    class Needs(BaseSettings):
        model_config = SettingsConfigDict(env_prefix="NEEDS_")
        size_mb: int = Field(ge=1, description="How much.")

    assert refusal(Needs) == "NEEDS_SIZE_MB is not set; it must be a whole number, at least 1."


def test_the_environment_does_not_leak_into_a_given_mapping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORK_RETRY_MAX", "9")
    assert load(Work, {}).retry_max == 3
    assert load(Work).retry_max == 9


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::"])
def test_an_open_address_without_a_token_is_refused(host: str) -> None:
    told = refusal(PlatformSettings, HTTP_HOST=host)
    assert told.startswith(f"HTTP_HOST is {host!r}, which other machines can reach; set API_TOKEN,")
    assert load(PlatformSettings, {"HTTP_HOST": host, "API_TOKEN": "long-enough"}).http_host == host
    assert load(PlatformSettings, {"HTTP_HOST": host, "HTTP_PRIVATE_NETWORK": "true"}).http_host == host


def test_nats_is_opened_to_other_machines_with_a_token_only() -> None:
    told = refusal(PlatformSettings, NATS_HOST="0.0.0.0")
    assert told.startswith("NATS_HOST is '0.0.0.0', which other machines can reach; set NATS_TOKEN,")
    assert load(PlatformSettings, {"NATS_HOST": "0.0.0.0", "NATS_TOKEN": "long-enough"}).nats_host == "0.0.0.0"
    assert "8 to 128 letters" in refusal(PlatformSettings, NATS_TOKEN="not enough")


def test_the_reference_of_settings_names_type_default_and_what_is_allowed() -> None:
    by_name = {variable.name: variable for variable in environment_names(Work)}
    assert list(by_name)[:3] == ["WORK_MARSHALING_PORT", "WORK_RETRY_MAX", "WORK_RETRY_DELAY"]
    retries = by_name["WORK_RETRY_MAX"]
    assert (retries.type, retries.default, retries.allowed) == ("int", "3", "a whole number from 0 to 99")
    assert by_name["WORK_RETRY_DELAY"].also == ("WORK_RETRY_DELAY_SECONDS",)
    assert by_name["WORK_MARSHALING_MODE"].allowed == "fast or safe"
    assert by_name["WORK_MARSHALING_SECRET"].secret


def test_every_setting_of_the_platform_is_described() -> None:
    assert all(variable.description for variable in environment_names(PlatformSettings))


@given(st.dictionaries(st.sampled_from(WORK_NAMES), st.text(), max_size=4))
def test_whatever_is_set_is_taken_or_told_in_sentences(environment: dict[str, str]) -> None:
    try:
        loaded = load(Work, environment)
    except WrongSetting as wrong:
        named = [name for name in environment if name in wrong.message]
        assert named
    else:
        assert 0 <= loaded.retry_max <= 99
        assert math.isfinite(loaded.delay_seconds)
