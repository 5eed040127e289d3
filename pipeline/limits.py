"""When to try again, when to give up, when to stop: what the user sets of it."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class LimitsConfig(BaseModel):
    """When to try again, when to give up, when to stop."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_attempts: int = Field(3, ge=1, description="failed attempts at a shard before it is quarantined")
    max_infra_failures: int = Field(20, ge=1, description="failures of store, node or actor that a shard may meet")
    backoff_seconds: float = Field(
        1.0, ge=0, description="pause before the second attempt; doubles each time (seconds)"
    )
    max_backoff_seconds: float = Field(60.0, ge=0, description="longest pause between two attempts (seconds)")
    max_reject_fraction: float = Field(
        0.1, ge=0, le=1, description="stop when more of the samples than this are rejected (fraction)"
    )
    stall_seconds: float = Field(
        300.0, gt=0, description="an attempt that moves no byte and no sample for so long has failed (seconds)"
    )
    shard_seconds: float | None = Field(None, gt=0, description="longest time for one attempt; null is none (seconds)")
    sample_seconds: float = Field(
        60.0, gt=0, description="in careful attempts: a sample that decodes longer is rejected as crashed (seconds)"
    )
    sample_bytes: int = Field(
        4 << 30, gt=0, description="in careful attempts: memory that decoding a sample may take (bytes)"
    )
    speculate_factor: float = Field(
        2.0, ge=0, description="idle actors repeat shards that take so many times the usual pace; 0 is never"
    )
    drain_seconds: float = Field(
        60.0, ge=0, description="after Ctrl-C or SIGTERM, how long running shards may take to finish (seconds)"
    )

    @model_validator(mode="after")
    def _sample_before_shard(self) -> Self:
        if self.sample_seconds >= self.stall_seconds:
            raise ValueError(
                f"limits.sample_seconds must be below limits.stall_seconds ({self.stall_seconds:g}), so that a sample "
                f"that hangs is found before its shard is given up, got {self.sample_seconds:g}"
            )
        return self
