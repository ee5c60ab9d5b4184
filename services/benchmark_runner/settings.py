"""Every knob of the benchmark runner."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from libs.common.kit.settings import HeaderKey


class Settings(BaseSettings):
    """Read by `wiring.py` only."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    port: int = Field(
        8119, ge=0, le=65535, validation_alias="BENCHMARK_RUNNER_PORT", description="Where the HTTP door listens."
    )
    benchmark_output_dir: Path | None = Field(
        None, description="Where reports are kept. Not set: `benchmarks` under `MESH_DATA_DIR`."
    )
    engine_api_key: HeaderKey | None = Field(
        None,
        json_schema_extra={"allowed": "printable characters without spaces"},
        description="The key of engines that deployments started on nodes with the same variable. It is said to them "
        "and to no other server.",
    )
    benchmark_queue: int = Field(100, ge=1, le=10_000, description="Runs that may wait; further ones are refused.")
