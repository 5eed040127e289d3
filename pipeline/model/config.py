"""The parameters of a VQModel: names, defaults and meaning as in diffusers 0.42, checked before anything is built."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

CLASS_NAME = "VQModel"

# What diffusers writes beside the parameters.
BOOKKEEPING_KEYS = frozenset({"_class_name", "_diffusers_version", "_name_or_path"})

# SpatialNorm's group count is a constant of MoVQ, not a parameter of the model.
SPATIAL_NORM_GROUPS = 32

DownBlockType = Literal["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]
UpBlockType = Literal["UpDecoderBlock2D", "AttnUpDecoderBlock2D"]
Activation = Literal["silu", "swish", "relu", "gelu", "mish"]


class VQModelConfig(BaseModel):
    """Geometry of a VQModel, as stored in its `config.json`.

    `block_out_channels` runs from the finest to the coarsest level; every level but the last halves the image's sides.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    in_channels: int = Field(3, ge=1, description="channels of the input image")
    out_channels: int = Field(3, ge=1, description="channels of the reconstructed image")
    down_block_types: tuple[DownBlockType, ...] = Field(("DownEncoderBlock2D",), description="one per level")
    up_block_types: tuple[UpBlockType, ...] = Field(("UpDecoderBlock2D",), description="one per level, coarsest first")
    block_out_channels: tuple[int, ...] = Field((64,), min_length=1, description="channels per level, finest first")
    layers_per_block: int = Field(1, ge=1, description="residual blocks per encoder level (the decoder has one more)")
    act_fn: Activation = Field("silu", description="activation of the residual blocks")
    latent_channels: int = Field(3, ge=1, description="channels between the encoder and quant_conv")
    sample_size: int = Field(32, ge=1, description="side of the training images (pixels); recorded, not used")
    num_vq_embeddings: int = Field(256, ge=1, description="codes in the codebook")
    norm_num_groups: int = Field(32, ge=1, description="groups of every GroupNorm")
    vq_embed_dim: int | None = Field(None, ge=1, description="dimensions of a code; None: latent_channels")
    scaling_factor: float = Field(0.18215, description="latent scale for diffusion models; recorded, not used")
    norm_type: Literal["group", "spatial"] = Field("group", description="decoder norms; spatial: MoVQ's (2209.09002)")
    mid_block_add_attention: bool = Field(True, description="self-attention in the middle of encoder and decoder")
    lookup_from_codebook: bool = Field(False, description="decode(force_not_quantize=True) takes indices, not latents")
    force_upcast: bool = Field(False, description="the weights overflow in float16; recorded for the caller")

    @field_validator("act_fn", mode="before")
    @classmethod
    def _lower_case(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_levels(self) -> Self:
        levels = len(self.block_out_channels)
        for name in ("down_block_types", "up_block_types"):
            if len(getattr(self, name)) != levels:
                raise ValueError(
                    f"{name} must have one entry per level of block_out_channels ({levels}), got {getattr(self, name)}"
                )
        for channels in self.block_out_channels:
            if channels < 1 or channels % self.norm_num_groups:
                raise ValueError(
                    f"block_out_channels must be positive multiples of norm_num_groups ({self.norm_num_groups}), "
                    f"got {self.block_out_channels}"
                )
        return self

    @model_validator(mode="after")
    def _check_spatial_norm(self) -> Self:
        if self.norm_type == "group":
            return self
        if any(channels % SPATIAL_NORM_GROUPS for channels in self.block_out_channels):
            raise ValueError(
                f"block_out_channels must be multiples of {SPATIAL_NORM_GROUPS} with norm_type 'spatial', "
                f"got {self.block_out_channels}"
            )
        if self.embed_dim != self.latent_channels:
            raise ValueError(
                f"vq_embed_dim must equal latent_channels ({self.latent_channels}) with norm_type 'spatial', "
                f"got {self.vq_embed_dim}"
            )
        return self

    @property
    def embed_dim(self) -> int:
        """Dimensions of one code."""
        return self.latent_channels if self.vq_embed_dim is None else self.vq_embed_dim

    @property
    def downsample(self) -> int:
        """Pixels per token along one side."""
        return int(2 ** (len(self.block_out_channels) - 1))


def parse_config(document: Mapping[str, Any]) -> VQModelConfig:
    """Builds the configuration from the content of a diffusers `config.json`.

    Raises:
        ValueError: the document is of another class, has unknown keys or invalid values; the text names each.
    """
    kind = document.get("_class_name", CLASS_NAME)
    if kind != CLASS_NAME:
        raise ValueError(f"_class_name must be {CLASS_NAME!r}, got {kind!r}")
    parameters = {key: value for key, value in document.items() if key not in BOOKKEEPING_KEYS}
    unknown = sorted(parameters.keys() - VQModelConfig.model_fields.keys())
    if unknown:
        raise ValueError(f"keys must be parameters of {CLASS_NAME}, got unknown {', '.join(unknown)}")
    try:
        return VQModelConfig.model_validate(parameters)
    except ValidationError as exc:
        raise ValueError("; ".join(_sentence(dict(problem)) for problem in exc.errors())) from exc


def _sentence(problem: dict[str, Any]) -> str:
    """One pydantic problem in the project's words."""
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    field = ".".join(str(part) for part in problem["loc"])
    rule = str(problem["msg"]).replace("Input should be", "must be")
    return f"{field} {rule}, got {problem['input']!r}"
