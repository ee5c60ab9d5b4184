"""Every knob of the queue. Their environment names are those of the fields, in capitals."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    work_marshaling_port: int = Field(8118, ge=0, le=65535, description="Where the queue's HTTP door listens.")
    work_retry_max: int = Field(3, ge=0, le=99, description="How often a failed item is tried again by default.")
    work_retry_delay: float = Field(
        5.0, ge=0, le=86400, description="Seconds before the first retry at most; doubles with each further one."
    )
    work_retry_delay_most: float = Field(
        3600.0, ge=0, le=7 * 86400, description="Seconds before any retry at most, however often it was tried."
    )
    work_poison_nodes: int = Field(
        3, ge=2, le=100, description="An item that was aboard when so many different nodes died is dead."
    )
    work_node_deaths_most: int = Field(
        12, ge=2, le=1000, description="An item that was aboard at so many deaths, of whatever nodes, is dead."
    )
    work_blacklist_window_seconds: float = Field(
        600.0, ge=1, le=7 * 86400, description="For so long an attempt's end counts for the blacklist."
    )
    work_blacklist_failure_rate: float = Field(
        0.5, gt=0, le=1, description="A node whose failure rate is surely above this is blacklisted; 1: never."
    )
    work_blacklist_term_seconds: float = Field(
        60.0, gt=0, le=86400, description="The first term on the blacklist; each further one is twice as long."
    )
    work_blacklist_term_most_seconds: float = Field(
        3600.0, gt=0, le=7 * 86400, description="No term on the blacklist is longer."
    )
    work_fast_failure_seconds: float = Field(
        1.0, ge=0, le=3600, description="A node that fails an attempt within this may hold half as many as before."
    )
    work_lease_seconds: float = Field(
        30.0, ge=1, le=3600, description="Seconds without a sign of life after which a node has lost an attempt."
    )
    work_leader_lease_seconds: int = Field(
        3, ge=1, le=60, description="Seconds after which an instance that stands still has lost the lead to another."
    )
    work_node_silence_seconds: float = Field(
        30.0, ge=1, le=3600, description="Seconds without a workload message after which a node is given nothing."
    )
    work_node_kept_seconds: float = Field(
        86_400.0, ge=60, le=365 * 86400, description="Seconds after its last word after which a node is forgotten."
    )
    work_ageing_seconds: float = Field(
        300.0, ge=1, le=7 * 86400, description="For every so many seconds an item waits it counts one priority better."
    )
    work_open_most: int = Field(1_000_000, ge=1, description="Open items at once; further ones wait in WORK_IN.")
    work_ended_kept: int = Field(100_000, ge=0, le=10_000_000, description="Ended items that can be asked for.")
    work_ended_kept_seconds: float = Field(86_400.0, ge=0, description="How long an ended item can be asked for.")
    work_remembered_ids: int = Field(
        1_000_000, ge=0, le=10_000_000, description="Ids of ended items that are known as already done."
    )
    work_archive_days: float = Field(
        90.0, ge=0, le=36_500, description="Days that finished work stays in the archive. 0: for ever."
    )
    work_checkpoint_records: int = Field(
        20_000, ge=1, description="Log records after which the whole state is written anew and older ones go."
    )
    work_checkpoint_mb: int = Field(128, ge=1, description="The same by the size of what was logged since, in MiB.")
    work_upkeep_seconds: float = Field(10.0, gt=0, le=3600, description="How often streams and memory are trimmed.")

    @property
    def port(self) -> int:
        return self.work_marshaling_port
