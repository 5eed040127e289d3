"""VQGANs of other codes as `VQModel`: their geometry and their parameters' names.

    taming    taming-transformers (2012.09841), latent-diffusion (2112.10752), Chameleon's own files (2405.09818)
    llamagen  LlamaGen's VQ-8 and VQ-16 (2406.06525), and what was made of them (Janus)

All are the same layers. LlamaGen compares latents and codes as unit vectors: of unit codes the nearest is the one with
the largest product, whatever the latent's length. So a codebook that is stored with unit length gives the same indices,
and the same images, in a plain `VQModel`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor
from torch.nn.functional import normalize

from pipeline.model import VQModelConfig

CODEBOOK = "quantize.embedding.weight"
GROUPS = 32  # of every group norm, in all of these codes
LLAMAGEN = {"VQ-8": (1, 2, 2, 4), "VQ-16": (1, 1, 2, 2, 4)}  # channel multipliers of the two published geometries

_STRICT = ConfigDict(frozen=True, extra="forbid")


class Ddconfig(BaseModel):
    """`ddconfig` of taming-transformers and latent-diffusion."""

    model_config = _STRICT

    ch: int = Field(..., description="channels of the finest level, before its multiplier")
    ch_mult: tuple[int, ...] = Field(..., description="multipliers of the levels, finest first")
    num_res_blocks: int = Field(..., description="residual blocks per encoder level")
    attn_resolutions: tuple[int, ...] = Field((), description="sides at which there is attention, of `resolution`")
    resolution: int = Field(..., description="side of the training images (pixels)")
    z_channels: int = Field(..., description="channels between the encoder and quant_conv")
    in_channels: int = Field(3, description="channels of the input image")
    out_ch: int = Field(3, description="channels of the reconstructed image")
    dropout: float = Field(0.0, description="of training; nothing here")
    double_z: Literal[False] = Field(False, description="true: a KL autoencoder, which has no codes")
    resamp_with_conv: Literal[True] = Field(True, description="false: pooling instead of strided convolutions")
    attn_type: Literal["vanilla", "none"] = Field("vanilla", description="kind of attention; linear has no counterpart")
    use_linear_attn: Literal[False] = Field(False, description="the older name of attn_type linear")
    tanh_out: Literal[False] = Field(False, description="true: images through tanh, which VQModel has not")
    give_pre_end: Literal[False] = Field(False, description="true: the decoder stops before its last layers")


class TamingParams(BaseModel):
    """The `params` of a VQ model, what of them decides tokens."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    ddconfig: Ddconfig = Field(..., description="geometry")
    n_embed: int = Field(..., description="codes")
    embed_dim: int = Field(..., description="dimensions of a code")
    remap: None = Field(None, description="a file that renumbers the codes, which VQModel has not")


class LlamaGenParams(BaseModel):
    """LlamaGen's `ModelArgs`, and two constants of its code."""

    model_config = _STRICT

    codebook_size: int = Field(16384, description="codes")
    codebook_embed_dim: int = Field(8, description="dimensions of a code")
    codebook_l2_norm: bool = Field(True, description="latents and codes are compared as unit vectors")
    codebook_show_usage: bool = Field(True, description="of training; nothing here")
    commit_loss_beta: float = Field(0.25, description="of training; nothing here")
    entropy_loss_ratio: float = Field(0.0, description="of training; nothing here")
    encoder_ch_mult: tuple[int, ...] = Field(LLAMAGEN["VQ-16"], description="multipliers of the levels, finest first")
    decoder_ch_mult: tuple[int, ...] = Field(LLAMAGEN["VQ-16"], description="must equal the encoder's")
    z_channels: int = Field(256, description="channels between the encoder and quant_conv")
    dropout_p: float = Field(0.0, description="of training; nothing here")
    ch: int = Field(128, description="channels of the finest level, before its multiplier")
    num_res_blocks: int = Field(2, description="residual blocks per encoder level")


def taming_config(document: Mapping[str, Any]) -> VQModelConfig:
    """The geometry in a YAML of taming-transformers or latent-diffusion: of the VQ model, or of the model around it.

    Raises:
        ValueError: it describes no VQ model, or one that VQModel cannot express; the text names each reason.
    """
    inner = document.get("model", document)
    inner = inner.get("params", {}).get("first_stage_config", inner)
    target = str(inner.get("target", ""))
    if any(word in target for word in ("Gumbel", "AutoencoderKL", "NoDisc")):
        raise ValueError(f"target must be a VQModel with a nearest-code quantizer, got {target}")
    params = _validated(TamingParams, inner.get("params", inner))
    dd = params.ddconfig
    sides = [dd.resolution // 2**level for level in range(len(dd.ch_mult))]
    attended = [dd.attn_type == "vanilla" and side in dd.attn_resolutions for side in sides]
    # The decoder starts from the coarsest side and doubles it, which is another series where a side was odd.
    upwards = [sides[-1] * 2**level for level in range(len(sides))]
    attended_up = [dd.attn_type == "vanilla" and side in dd.attn_resolutions for side in upwards]
    return VQModelConfig(
        in_channels=dd.in_channels,
        out_channels=dd.out_ch,
        down_block_types=tuple("AttnDownEncoderBlock2D" if has else "DownEncoderBlock2D" for has in attended),
        up_block_types=tuple("AttnUpDecoderBlock2D" if has else "UpDecoderBlock2D" for has in attended_up),
        block_out_channels=_widths(dd.ch, dd.ch_mult),
        layers_per_block=dd.num_res_blocks,
        latent_channels=dd.z_channels,
        sample_size=dd.resolution,
        num_vq_embeddings=params.n_embed,
        vq_embed_dim=params.embed_dim,
        norm_num_groups=GROUPS,
        mid_block_add_attention=dd.attn_type == "vanilla",
    )


def llamagen_config(document: Mapping[str, Any]) -> tuple[VQModelConfig, bool]:
    """The geometry in LlamaGen's arguments, and whether codes are compared as unit vectors.

    Raises:
        ValueError: an argument is unknown, or encoder and decoder differ.
    """
    params = _validated(LlamaGenParams, document)
    if params.encoder_ch_mult != params.decoder_ch_mult:
        raise ValueError(f"decoder_ch_mult must equal encoder_ch_mult, got {params.decoder_ch_mult}")
    plain = len(params.encoder_ch_mult) - 1
    config = VQModelConfig(
        down_block_types=("DownEncoderBlock2D",) * plain + ("AttnDownEncoderBlock2D",),
        up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * plain,
        block_out_channels=_widths(params.ch, params.encoder_ch_mult),
        layers_per_block=params.num_res_blocks,
        latent_channels=params.z_channels,
        num_vq_embeddings=params.codebook_size,
        vq_embed_dim=params.codebook_embed_dim,
        norm_num_groups=GROUPS,
    )
    return config, params.codebook_l2_norm


def renamed(weights: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """The parameters of either code under VQModel's names; a name that is not known stays as it is.

    Args:
        weights: of encoder, decoder and codebook.
        levels: resolutions of the model: taming counts the decoder's from the finest.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        for pattern, new in _RULES:
            name = pattern.sub(new(levels) if callable(new) else new, name)  # noqa: PLW2901 - rule after rule
        is_projection = ".attentions." in name and tensor.ndim == 4  # a 1x1 convolution there, a linear layer here
        found[name] = tensor[:, :, 0, 0] if is_projection else tensor
    return found


def of_unit_length(codes: Tensor) -> Tensor:
    """Codes [K, D] as LlamaGen compares and decodes them."""
    return normalize(codes.float(), p=2, dim=-1)


def _up_block(levels: int) -> Callable[[re.Match[str]], str]:
    return lambda match: f"decoder.up_blocks.{levels - 1 - int(match[1])}."


_RULES: tuple[tuple[re.Pattern[str], Any], ...] = (
    (re.compile(r"^decoder\.up\.(\d+)\."), _up_block),
    (re.compile(r"^encoder\.(?:down|conv_blocks)\.(\d+)\."), r"encoder.down_blocks.\1."),
    (re.compile(r"^decoder\.conv_blocks\.(\d+)\."), r"decoder.up_blocks.\1."),  # LlamaGen counts from the coarsest
    (re.compile(r"\.(?:block|res)\.(\d+)\."), r".resnets.\1."),
    (re.compile(r"\.attn\.(\d+)\."), r".attentions.\1."),
    (re.compile(r"\.(down|up)sample\.conv\."), r".\1samplers.0.conv."),
    (re.compile(r"\.mid\.(?:block_1|0)\."), ".mid_block.resnets.0."),
    (re.compile(r"\.mid\.(?:attn_1|1)\."), ".mid_block.attentions.0."),
    (re.compile(r"\.mid\.(?:block_2|2)\."), ".mid_block.resnets.1."),
    (re.compile(r"\.norm_out\."), ".conv_norm_out."),
    (re.compile(r"\.nin_shortcut\."), ".conv_shortcut."),
    (re.compile(r"(\.attentions\.\d+)\.norm\."), r"\1.group_norm."),
    (re.compile(r"(\.attentions\.\d+)\.([qkv])\."), r"\1.to_\2."),
    (re.compile(r"(\.attentions\.\d+)\.proj_out\."), r"\1.to_out.0."),
)


def _widths(ch: int, multipliers: tuple[int, ...]) -> tuple[int, ...]:
    if multipliers[0] != 1:
        raise ValueError(
            f"ch_mult must begin with 1, as VQModel's first convolution has no width of its own, got {multipliers}"
        )
    return tuple(ch * multiplier for multiplier in multipliers)


def _validated(model: type[Any], document: Mapping[str, Any]) -> Any:
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise ValueError(
            "; ".join(
                f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}, got {problem['input']!r}"
                for problem in error.errors()
            )
        ) from error


def ema_of(checkpoint: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """latent-diffusion's moving averages (`model_ema.`, names without dots) of a tokenizer's parameters.

    Args:
        checkpoint: all of its tensors.
        own: the tokenizer's.

    Returns:
        Those of `own`, averaged where there is an average; nothing if there is none.
    """
    averages = {name: checkpoint.get(f"model_ema.{name.replace('.', '')}") for name in own}
    if not any(average is not None for average in averages.values()):
        return {}
    return {name: tensor if (average := averages[name]) is None else average for name, tensor in own.items()}
