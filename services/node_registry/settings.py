"""Every knob of the registry."""

from typing import Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="NODE_REGISTRY_", frozen=True, extra="ignore")

    port: int = Field(8115, ge=0, le=65535, description="Where the registry's HTTP door listens.")
    suspect_beats: float = Field(3.0, ge=1, le=1000, description="Missed heartbeats after which a node is SUSPECT.")
    offline_beats: float = Field(6.0, ge=1, le=1000, description="Missed heartbeats after which a node is OFFLINE.")
    mass_nodes: int = Field(
        3, ge=2, le=100_000, description="So many silent nodes, if more than half, are not declared OFFLINE."
    )
    watch_seconds: float = Field(0.5, gt=0, le=60, description="How often silence is judged.")
    discover_seconds: float = Field(5.0, gt=0, le=3600, description="Nodes are asked to announce at most this often.")

    registration_seconds: float = Field(
        300.0, ge=1, le=3600, description="How long a machine told over REST counts as online without heartbeats."
    )
    nodes_most: int = Field(
        20_000, ge=1, le=1_000_000, description="So many nodes are known at most; more are refused."
    )
    forget_seconds: float = Field(
        604_800.0, ge=1, le=31_536_000, description="Who is OFFLINE for so long is forgotten; the archive keeps it."
    )
    lease_seconds: int = Field(
        3, ge=2, le=60, description="Of several registries another one is elected when the elected one is gone so long."
    )
    archive_rows: int = Field(
        50_000,
        ge=1000,
        le=10_000_000,
        description="So many events wait in memory while the archive is away; more are lost.",
    )

    @model_validator(mode="after")
    def _one_after_the_other(self) -> Self:
        if self.offline_beats < self.suspect_beats:
            raise ValueError(
                f"NODE_REGISTRY_OFFLINE_BEATS is {self.offline_beats:g}; it must be at least "
                f"NODE_REGISTRY_SUSPECT_BEATS, which is {self.suspect_beats:g}."
            )
        return self
