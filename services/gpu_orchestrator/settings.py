"""Every knob of the GPU orchestrator. Their environment names are those of the fields, in capitals."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    gpu_orchestrator_port: int = Field(
        8098, ge=0, le=65535, description="Where the GPU orchestrator's HTTP door listens."
    )
    gpu_orchestrator_states_seconds: float = Field(
        10.0, ge=0.5, le=3600, description="How often the GPUs' states are published, changed or not."
    )
    gpu_orchestrator_changes_seconds: float = Field(
        1.0,
        ge=0.25,
        le=3600,
        description="After a publication the next change of what is free on a GPU is published at the earliest so many"
        " seconds later; a lone change is within 0.25 s.",
    )
    gpu_orchestrator_source_seconds: float = Field(
        2.0, ge=0.1, le=60, description="How long one source may take; a slower one costs its field."
    )
    gpu_orchestrator_lock: Path | None = Field(
        None,
        description="A file that one orchestrator can lock, in place of the name that all of one machine share: by it"
        " they notice one another. Orchestrators in containers need one that all of them mount.",
    )
    gpu_reservation_timeout: float = Field(
        300.0,
        ge=1,
        le=86400,
        description="Seconds after which a reservation that nobody committed expires, by default.",
    )
    gpu_measure_seconds: float = Field(
        2.0,
        ge=0,
        le=60,
        description="How old a whole measurement may be on which memory is reserved, in seconds; a look at what is in"
        " use comes before each reservation all the same.",
    )
    gpu_watch_seconds: float = Field(1.0, ge=0.1, le=60, description="How often is measured when nobody asks.")
    gpu_margin_mb: int = Field(256, ge=0, le=1_000_000, description="MiB of each GPU that are given to nobody.")
    gpu_ram_margin_mb: int = Field(512, ge=0, le=100_000_000, description="MiB of RAM that are given to nobody.")
    gpu_foreign_hold_seconds: float = Field(
        60.0, ge=0, le=86400, description="For how long the most that a foreign process used stays protected."
    )
    gpu_leak_grace_seconds: float = Field(
        30.0, ge=0, le=86400, description="How long a process may outlive its claim before it is told as a leak."
    )
    gpu_healthy_seconds: float = Field(
        60.0, ge=0, le=86400, description="How long a GPU that was unwell must be well before it is given again."
    )

    gpu_pressure_window_seconds: float = Field(
        60.0, ge=10, le=600, description="How long use must have climbed without a fall before the climb is believed."
    )
    gpu_pressure_elevated_seconds: float = Field(
        90.0, ge=1, le=86400, description="ELEVATED when nothing will be left in so many seconds; CRITICAL in half."
    )
    gpu_pressure_elevated_ratio: float = Field(
        0.10, ge=0, le=1, description="ELEVATED when less than this part of the RAM is left; CRITICAL below half of it."
    )
    gpu_pressure_hold_seconds: float = Field(
        30.0, ge=0, le=3600, description="How long it must be better before the level of pressure goes down."
    )

    @property
    def port(self) -> int:
        return self.gpu_orchestrator_port
