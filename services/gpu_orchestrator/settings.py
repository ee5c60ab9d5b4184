"""Every knob of the GPU orchestrator."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="GPU_ORCHESTRATOR_", frozen=True, extra="ignore")

    port: int = Field(8098, ge=0, le=65535, description="Where the GPU orchestrator's HTTP door listens.")
    states_seconds: float = Field(10.0, ge=0.5, le=3600, description="How often the GPUs' states are published.")
    source_seconds: float = Field(
        2.0, ge=0.1, le=60, description="How long one source may take; a slower one costs its field."
    )
