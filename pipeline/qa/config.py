"""What the user may choose about QA, and where each gate closes."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class QaConfig(BaseModel):
    """How many samples of a shard are looked at, and what stops a run. A gate that is null is open."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples_per_shard: int = Field(
        4,
        ge=0,
        description="views per shard, drawn by lot, that are decoded; and half as many unusual ones; 0: no QA",
    )
    canary_shards: int = Field(1, ge=0, description="shards that are judged before the others begin (count)")
    on_fail: Literal["stop", "mark"] = Field(
        "stop", description="what a gate that fails does: stop the run, or mark it and go on; both end with exit code 3"
    )
    baseline: str | None = Field(None, description="OUTPUT of an earlier run, for max_psnr_drop (folder or URL)")
    min_golden_agreement: float | None = Field(
        0.98, ge=0, le=1, description="each device must give this share of the golden images' tokens (fraction)"
    )
    max_out_of_range: int | None = Field(0, ge=0, description="tokens of a shard beyond the codebook (count)")
    max_shard_reject_fraction: float | None = Field(
        0.5, ge=0, le=1, description="rejected samples of one shard (fraction); limits.max_reject_fraction is the run's"
    )
    max_duplicate_fraction: float | None = Field(
        0.2, ge=0, le=1, description="rows of a shard whose grid came before in it: placeholders, copies (fraction)"
    )
    max_constant_fraction: float | None = Field(
        0.2, ge=0, le=1, description="rows of a shard whose grid is one code in its middle: blank images (fraction)"
    )
    min_entropy: float | None = Field(
        0.3, ge=0, le=1, description="entropy of the run's tokens / log2 of the codes (fraction); below, it collapsed"
    )
    min_psnr: float | None = Field(12.0, description="mean over a shard's random samples (dB); a flat gray gives 12")
    max_psnr_drop: float | None = Field(1.0, ge=0, description="of the run's mean, against qa.baseline (dB)")
    max_divergence: float | None = Field(
        0.06, ge=0, description="Jensen-Shannon divergence of a shard's tokens to the run's, beyond chance (bits)"
    )
