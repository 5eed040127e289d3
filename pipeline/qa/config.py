"""What the user may choose about QA, and where each gate closes."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from pipeline.urls import local_path

_SHA256 = r"^[0-9a-f]{64}$"


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
    lpips_weights: Path | None = Field(
        None,
        description="VGG16 and LPIPS v0.1's heads for it, one safetensors file on every node (path); null: no LPIPS",
    )
    lpips_sha256: str | None = Field(None, pattern=_SHA256, description="of that file; any other is refused (hex)")
    inception_weights: Path | None = Field(
        None,
        description="TorchScript from uint8 images to features, on every node; its code runs (path); null: no rFID",
    )
    inception_sha256: str | None = Field(None, pattern=_SHA256, description="of that file, which needs it (hex)")

    @field_validator("lpips_weights", "inception_weights", mode="before")
    @classmethod
    def _absolute(cls, path: Any, info: ValidationInfo) -> Any:
        if not isinstance(path, str | Path):
            return path
        local = local_path(str(path))
        if local is None:
            raise ValueError(f"qa.{info.field_name} must be a file on a local disk, got {path}")
        return local

    @model_validator(mode="after")
    def _check_pins(self) -> Self:
        if (self.inception_weights is None) != (self.inception_sha256 is None):
            raise ValueError(
                "qa.inception_weights and qa.inception_sha256 must be given together, got one of them: the file's code "
                "runs, so it must be the one you know (sha256sum FILE)"
            )
        if self.lpips_sha256 and not self.lpips_weights:
            raise ValueError("qa.lpips_sha256 must come with qa.lpips_weights, got it alone")
        return self
