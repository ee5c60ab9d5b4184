"""Settings come from the environment. A wrong one ends the start with a sentence that says what to change."""

from collections.abc import Mapping
from os import environ  # noqa: TID251  # the one place that reads it
from pathlib import Path
from re import fullmatch
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from libs.common.contracts.base import Identifier
from libs.common.errors import WrongSetting
from libs.common.kit.settings_words import Variable, complaint, raw_value, variables

S = TypeVar("S", bound=BaseSettings)


def _fits_a_header(key: SecretStr) -> SecretStr:
    if not fullmatch(r"[!-~]{1,1024}", key.get_secret_value()):
        raise ValueError("it must be 1 to 1024 printable characters of ASCII without spaces")
    return key


HeaderKey = Annotated[SecretStr, AfterValidator(_fits_a_header)]
"""A secret that is said in a header."""


def _fits_an_address(token: SecretStr) -> SecretStr:
    if not fullmatch(r"[A-Za-z0-9_-]{8,128}", token.get_secret_value()):
        raise ValueError("it must be 8 to 128 letters, digits, `_` and `-`")
    return token


AddressToken = Annotated[SecretStr, AfterValidator(_fits_an_address)]
"""A secret that stands in the address of a server."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")


class PlatformSettings(BaseSettings):
    """What every service on a machine shares."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    nats_url: str | None = Field(
        None,
        pattern=r"^(nats|tls|ws|wss)://\S+$",
        json_schema_extra={"allowed": "an address such as nats://127.0.0.1:4222"},
        description="The NATS server to use, several separated by commas. Not set: one is started as a child process.",
    )
    nats_credentials: Path | None = Field(None, description="A credentials file for `NATS_URL`.")
    nats_host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="Where the NATS server that is started here listens; 0.0.0.0: for other machines too.",
    )
    nats_token: AddressToken | None = Field(
        None,
        json_schema_extra={"allowed": "8 to 128 letters, digits, `_` and `-`"},
        description="When set, whoever connects to the NATS server that is started here must know it.",
    )
    nats_port: int = Field(4222, ge=0, le=65535, description="Where the NATS server that is started here listens.")
    stream_replicas: int = Field(1, ge=1, le=5, description="Copies of every stream; 3 in a cluster.")
    work_in_max_mb: int = Field(1024, ge=1, le=1_048_576, description="The most that `WORK_IN` keeps, in MiB.")
    work_out_max_mb: int = Field(1024, ge=1, le=1_048_576, description="The most that `WORK_OUT` keeps, in MiB.")
    work_log_max_mb: int = Field(1024, ge=1, le=1_048_576, description="The most that `WORK_LOG` keeps, in MiB.")
    work_done_max_mb: int = Field(1024, ge=1, le=1_048_576, description="The most that `WORK_DONE` keeps, in MiB.")
    work_objects_max_mb: int = Field(
        2048, ge=1, le=1_048_576, description="The most that the object store `WORK_OBJECTS` keeps, in MiB."
    )
    http_host: str = Field("127.0.0.1", min_length=1, description="The address the HTTP doors listen on.")
    http_private_network: bool = Field(
        False, description="The network around `HTTP_HOST` is private, so it may be opened without `API_TOKEN`."
    )
    http_body_limit_mb: int = Field(32, ge=1, le=1024, description="The largest request body taken, in MiB.")
    api_token: SecretStr | None = Field(
        None, min_length=8, description="When set, HTTP requests must carry `Authorization: Bearer` with it."
    )
    mesh_data_dir: Path = Field(Path(".data"), description="Everything kept on this machine is under this folder.")
    archive_url: str | None = Field(
        None,
        repr=False,
        pattern=r"^(sqlite:///.+|postgres(ql)?://\S+|supabase\+https?://\S+)$",
        json_schema_extra={
            "allowed": "sqlite:///file, postgresql://user:password@host/database or supabase+https://host"
        },
        description="Where the archive is. Not set: Supabase if `SUPABASE_URL` is, else a file under `MESH_DATA_DIR`.",
    )
    supabase_url: str | None = Field(
        None,
        pattern=r"^https?://\S+$",
        json_schema_extra={"allowed": "an address such as https://project.supabase.co"},
        description="The Supabase project that keeps the archive; needs the optional extra `supabase`.",
    )
    supabase_service_key: SecretStr | None = Field(
        None, min_length=8, description="The project's service key (`service_role`, or a secret key)."
    )
    node_id: Identifier | None = Field(
        None,
        json_schema_extra={"allowed": "1 to 128 printable ASCII characters without spaces"},
        description="This machine's name in the mesh. Not set: made once and kept under `MESH_DATA_DIR`.",
    )
    log_format: Literal["console", "json"] = Field("console", description="Lines for people, or JSON.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="The least that is logged.")
    shutdown_seconds: float = Field(10.0, ge=0, le=600, description="How long work in hand may take at shutdown.")
    tracing: bool = Field(False, description="Send OpenTelemetry traces; needs the optional extra `tracing`.")
    otel_exporter_otlp_endpoint: str | None = Field(
        None, description="Where traces are sent (OTLP over HTTP). Not set: traces are passed on, not sent."
    )

    @model_validator(mode="after")
    def _is_safe(self) -> Self:
        if self.nats_host not in LOOPBACK and self.nats_token is None and self.nats_url is None:
            raise ValueError(
                f"NATS_HOST is {self.nats_host!r}, which other machines can reach; set NATS_TOKEN, "
                "or leave NATS_HOST at 127.0.0.1."
            )
        if self.http_host not in LOOPBACK and self.api_token is None and not self.http_private_network:
            raise ValueError(
                f"HTTP_HOST is {self.http_host!r}, which other machines can reach; set API_TOKEN, or "
                "HTTP_PRIVATE_NETWORK=true if the network around it is private, or leave HTTP_HOST at 127.0.0.1."
            )
        return self


def load(settings: type[S], environment: Mapping[str, str] | None = None) -> S:
    """Read settings from the environment (or from a mapping that stands for it).

    A variable that is empty counts as not set. Raises `WrongSetting` with one sentence for each wrong variable.
    """
    source = environ if environment is None else environment
    known = variables(settings)
    values = {variable.key: raw_value(variable, source) for variable in known if variable.given(source)}
    loaded = settings.__new__(settings)
    try:
        BaseModel.__init__(loaded, **values)
    except ValidationError as error:
        raise _wrong(error, known, source) from None
    return loaded


def environment_names(settings: type[BaseSettings]) -> list[Variable]:
    """Every variable a settings class reads, for the generated reference."""
    return variables(settings)


def _wrong(error: ValidationError, known: list[Variable], source: Mapping[str, str]) -> WrongSetting:
    by_key: dict[Any, Variable] = {variable.key: variable for variable in known}
    sentences: list[str] = []
    for found in error.errors(include_url=False):
        variable = by_key.get(found["loc"][0]) if found["loc"] else None
        sentence = complaint(variable, found, source)
        if sentence not in sentences:
            sentences.append(sentence)
    return WrongSetting("\n".join(sentences))
