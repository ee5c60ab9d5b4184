"""Every knob of the vLLM orchestrator."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Read by `wiring.py` only."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    port: int = Field(
        8117, ge=0, le=65535, validation_alias="VLLM_ORCHESTRATOR_PORT", description="Where the HTTP door listens."
    )
