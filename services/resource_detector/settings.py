"""Every knob of the resource detector."""

from pathlib import Path
from typing import Annotated

from pydantic import AliasChoices, BeforeValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from libs.common.contracts.node_registry import Tier


def _any_case(value: object) -> object:
    return value.strip().upper() if isinstance(value, str) else value


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="RESOURCE_DETECTOR_", frozen=True, extra="ignore")

    port: int = Field(8116, ge=0, le=65535, description="Where the detector's HTTP door listens.")
    heartbeat_seconds: float = Field(5.0, ge=0.1, le=3600, description="How often this machine says that it is alive.")
    announce_seconds: float = Field(
        60.0, ge=1, le=86400, description="How often everything is read again and announced."
    )
    source_seconds: float = Field(
        2.0, ge=0.1, le=60, description="How long one source may take; a slower one costs its field."
    )
    disks: list[Path] = Field([], description="Folders whose free space is reported, beside `MESH_DATA_DIR`.")
    tier: Annotated[Tier, BeforeValidator(_any_case)] | None = Field(
        None,
        validation_alias=AliasChoices("NODE_TIER"),
        json_schema_extra={"allowed": "AI_FACTORY, GPU_PEER, GPU_INFRA or CPU_ONLY"},
        description="This machine's tier, instead of the one that follows from its GPUs.",
    )
    labels: dict[str, str] = Field(
        {},
        validation_alias=AliasChoices("NODE_LABELS"),
        json_schema_extra={"allowed": 'a JSON object of texts, such as {"room": "cellar"}'},
        description="Labels by which work and queries may choose this machine.",
    )
