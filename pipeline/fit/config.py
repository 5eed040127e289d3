"""How a model is trained."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pipeline.model import VQModelConfig

# Groups of one channel would make the norms forget each crop's brightness, so there are 8, not the default 32.
DEMO_GEOMETRY = VQModelConfig(
    block_out_channels=(32, 64, 64, 128),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    latent_channels=16,
    num_vq_embeddings=1024,
    norm_num_groups=8,
    mid_block_add_attention=False,
    sample_size=256,
)

# What may change between a run and its continuation: these do not decide the weights (the last two but for rounding).
_FREE = {"report_interval", "reports_per_checkpoint", "held_out_side", "address", "workers", "device"}
_SMALLEST_PERCEPTUAL_CROP = 16  # pixels; VGG16 halves its input four times


class FitConfig(BaseModel):
    """How a model is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: VQModelConfig = Field(DEMO_GEOMETRY, description="geometry of the model")
    steps: int = Field(3000, ge=1, description="optimizer steps")
    batch_size: int = Field(
        16, ge=1, description="crops per step, of all workers; fewer of the final, larger crops: as many pixels"
    )
    crop: int = Field(64, ge=8, description="side of the training crops (pixels)")
    final_crop: int = Field(128, ge=8, description="side of the crops of the last steps (pixels)")
    final_fraction: float = Field(0.15, ge=0, le=1, description="part of the steps that use the final crop")
    min_short_side: int = Field(256, ge=8, description="crops are cut from images scaled to at least this (pixels)")
    max_short_side: int = Field(400, ge=8, description="... and at most this short side (pixels)")
    color_jitter: float = Field(0.1, ge=0, lt=1, description="largest random change of the colour matrix; 0: none")
    pool_images: int = Field(1024, ge=1, description="images kept in memory by each worker; the rest is not used")
    learning_rate: float = Field(1e-3, gt=0, description="peak; warmed up linearly, then cosine to zero")
    warmup_steps: int = Field(100, ge=0, description="steps of the linear warm-up")
    weight_decay: float = Field(1e-4, ge=0, description="of AdamW")
    gradient_clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    l1_weight: float = Field(1.0, ge=0, description="weight of the mean absolute error, images in [-1, 1]")
    l2_weight: float = Field(5.0, ge=0, description="weight of the mean squared error")
    commitment: float = Field(0.25, ge=0, description="weight of the latents' squared distance to their codes")
    perceptual_file: Path | None = Field(
        None, description="VGG16 weights (safetensors, torchvision's names) for a perceptual term; null: none"
    )
    perceptual_weight: float = Field(1.0, ge=0, description="weight of the perceptual term, if there is a file")
    continuous_steps: int = Field(200, ge=0, description="first steps, without quantization")
    codebook: Literal["ema", "gradient"] = Field(
        "ema", description="ema: codes are moving averages; gradient: they follow the codebook loss"
    )
    codebook_decay: float = Field(0.99, gt=0, lt=1, description="of the codes' moving averages, per step")
    restart_interval: int = Field(25, ge=1, description="steps between restarts of dead codes; none with final crops")
    precision: Literal["float32", "bf16"] = Field(
        "float32", description="bf16: products in bfloat16 (autocast); weights, codebook and losses stay float32"
    )
    report_interval: int = Field(50, ge=1, description="steps between reports")
    reports_per_checkpoint: int = Field(5, ge=1, description="reports between checkpoints, strips and held-out figures")
    held_out_side: int = Field(256, ge=8, description="side of the held-out images, cut from the middle (pixels)")
    seed: int = Field(0, ge=0, description="of weights, crops and codebook")
    workers: int = Field(1, ge=1, description="processes that share each batch, through Ray Train if more than one")
    address: str | None = Field(None, description="address of a Ray cluster for several workers; null starts Ray here")
    device: str = Field("auto", description="torch device; auto: CUDA if there is one, else the CPU")

    @field_validator("perceptual_file")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return path and path.absolute()

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        for name in ("crop", "final_crop"):
            side = getattr(self, name)
            if side % self.model.downsample or side > self.min_short_side:
                raise ValueError(
                    f"{name} must be a multiple of the model's downsampling ({self.model.downsample}) and at most "
                    f"min_short_side ({self.min_short_side}), got {side}"
                )
            if self.perceptual_file and side < _SMALLEST_PERCEPTUAL_CROP:
                raise ValueError(
                    f"{name} must be at least {_SMALLEST_PERCEPTUAL_CROP} with a perceptual_file, got {side}"
                )
            if self.crops_of(side) % self.workers:
                raise ValueError(
                    f"workers must divide the {self.crops_of(side)} crops of a step with crops of {side} pixels "
                    f"(set batch_size), got {self.workers}"
                )
        if self.held_out_side % self.model.downsample:
            raise ValueError(
                f"held_out_side must be a multiple of the model's downsampling ({self.model.downsample}), "
                f"got {self.held_out_side}"
            )
        if self.max_short_side < self.min_short_side:
            raise ValueError(
                f"max_short_side must be at least min_short_side ({self.min_short_side}), got {self.max_short_side}"
            )
        if self.continuous_steps >= self.steps:
            raise ValueError(f"continuous_steps must be below steps ({self.steps}), got {self.continuous_steps}")
        return self

    @property
    def final_start(self) -> int:
        """The first step that uses the final crop."""
        return self.steps - round(self.steps * self.final_fraction)

    @property
    def checkpoint_interval(self) -> int:
        """Steps between checkpoints."""
        return self.report_interval * self.reports_per_checkpoint

    def crops_of(self, side: int) -> int:
        """Crops per step, of all workers; times side^2 it is about the same for every side."""
        return max(1, self.batch_size * self.crop**2 // side**2)

    def identity(self) -> dict[str, Any]:
        """What decides the weights, as JSON: a training goes on only under the same."""
        return self.model_dump(mode="json", exclude=_FREE)
