"""Every knob of the vLLM orchestrator."""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Read by `wiring.py` only."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    port: int = Field(
        8117, ge=0, le=65535, validation_alias="VLLM_ORCHESTRATOR_PORT", description="Where the HTTP door listens."
    )
    models_folder: Path | None = Field(
        None,
        validation_alias="VLLM_MODELS_FOLDER",
        description="A folder with one folder for each model, which may then be named by path.",
    )
    catalogue: Path | None = Field(
        None,
        validation_alias="VLLM_CATALOGUE",
        description="A JSON file with more models to offer, in the form that the page on models shows.",
    )
    hub: str = Field(
        "https://huggingface.co",
        pattern=r"^https?://\S+$",
        validation_alias="HF_ENDPOINT",
        json_schema_extra={"allowed": "an address such as https://huggingface.co"},
        description="The hub that is asked for models' configurations.",
    )
    hub_token: SecretStr | None = Field(
        None, validation_alias="HF_TOKEN", description="The hub's token, for models that are gated or private."
    )
    hub_cache: Path | None = Field(
        None,
        validation_alias="HF_HUB_CACHE",
        description="The cache of Hugging Face's clients. Not set: `~/.cache/huggingface/hub`.",
    )
    hub_offline: bool = Field(
        False, validation_alias="HF_HUB_OFFLINE", description="Never ask the hub: only what is here already is known."
    )
    hub_seconds: float = Field(
        20.0, ge=0.1, le=600, validation_alias="VLLM_HUB_SECONDS", description="How long the hub may take to answer."
    )
    tensorzero_folder: Path | None = Field(
        None,
        validation_alias="TENSORZERO_FOLDER",
        description="A folder for the configuration of a TensorZero gateway: `own` in it is yours, `live` the whole.",
    )
    tensorzero_reload: str = Field(
        "",
        pattern=r"^(command:.*\S.*|pidfile:/.+)?$",
        validation_alias="TENSORZERO_RELOAD",
        json_schema_extra={"allowed": "command: and a command line, or pidfile: and the path of a file"},
        description="How a gateway is told to start anew: a command, or SIGHUP to the process whose number a file has.",
    )
    tensorzero_url: str | None = Field(
        None,
        pattern=r"^https?://\S+$",
        validation_alias="TENSORZERO_URL",
        json_schema_extra={"allowed": "an address such as http://127.0.0.1:3000"},
        description="Where the gateway answers. Set: after a reload it is waited for.",
    )
    tensorzero_reload_seconds: float = Field(
        60.0,
        ge=0.1,
        le=3600,
        validation_alias="TENSORZERO_RELOAD_SECONDS",
        description="How long a reload may take until the gateway answers; then the configuration before comes back.",
    )
    tensorzero_engine_key: str = Field(
        "none",
        pattern=r"^(none|(env|path|path_from_env)::\S{1,255})$",
        validation_alias="TENSORZERO_ENGINE_KEY",
        json_schema_extra={"allowed": "none, or a place in TensorZero's words such as env::VLLM_API_KEY"},
        description="Where the gateway finds what our engines want to hear, if their nodes have `ENGINE_API_KEY`.",
    )
    tensorzero_settle_seconds: float = Field(
        2.0,
        ge=0,
        le=3600,
        validation_alias="TENSORZERO_SETTLE_SECONDS",
        description="How long nothing changes before the gateway is told: changes that follow one another are one.",
    )
    log_max_mb: int = Field(
        128,
        ge=1,
        validation_alias="VLLM_LOG_MAX_MB",
        description="How large the log of instances may become; it is begun anew long before.",
    )
    checkpoint_records: int = Field(
        2000,
        ge=1,
        validation_alias="VLLM_CHECKPOINT_RECORDS",
        description="After so many changes of instances their log begins anew.",
    )
    start_seconds: float = Field(
        1800.0,
        ge=1,
        le=86400,
        validation_alias="VLLM_START_SECONDS",
        description="How long an engine may take until it serves; then it is ended and started anew.",
    )
    ray_join_seconds: float = Field(
        120.0,
        gt=0,
        le=86400,
        validation_alias="VLLM_RAY_JOIN_SECONDS",
        description="How long the nodes of an engine over Ray may take to find each other; then it is started anew.",
    )
    drain_seconds: float = Field(
        30.0,
        ge=0,
        le=86400,
        validation_alias="VLLM_DRAIN_SECONDS",
        description="How long requests in hand may take when an engine is deleted, restarted or replaced, where the "
        "deployment does not say.",
    )
    wait_seconds: float = Field(
        5.0,
        ge=0.1,
        le=3600,
        validation_alias="VLLM_WAIT_SECONDS",
        description="How long a replica waits that found no room, at least; twice as long at most.",
    )
