"""A VQ autoencoder (VQ-VAE, VQGAN, MoVQ): drop-in for diffusers 0.42's `VQModel`, and the job's hot path.

* `encode`, `decode`, `forward`, `from_pretrained`, `save_pretrained`: as in diffusers, same names, same results.
* `encode_indices`, `decode_indices`: pixels to tokens and back. Encoding runs the encoder, quant_conv and the nearest
  code search: nothing of the decoder, no loss, no gather.
"""

import copy
from os import PathLike
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from pipeline.encoding import ValueRange
from pipeline.model import checkpoint
from pipeline.model.blocks import Decoder, Encoder
from pipeline.model.config import VQModelConfig
from pipeline.model.quantizer import VectorQuantizer
from pipeline.model.tokenizer import Tokenizer
from pipeline.storage import Storage


class VQEncoderOutput(NamedTuple):
    """Result of `VQModel.encode`.

    Attributes:
        latents: [B, embed_dim, h, w], not quantized.
    """

    latents: Tensor


class VQDecoderOutput(NamedTuple):
    """Result of `VQModel.decode`.

    Attributes:
        sample: [B, out_channels, H, W], nominally in [-1, 1], not clamped.
        commit_loss: the quantizer's loss, a scalar; zeros [B] where nothing was quantized.
    """

    sample: Tensor
    commit_loss: Tensor


class VQModel(Tokenizer):
    """An encoder, a codebook and a decoder.

    Args:
        config: the geometry; None for diffusers' defaults.
        value_range: of the pixels that the model was trained on. `encode_indices` and `decode_indices` mind it;
            diffusers' methods take and give pixels as they are.
        **parameters: diffusers' spelling, `VQModel(block_out_channels=(64, 128), ...)`; only without `config`.
    """

    def __init__(
        self,
        config: VQModelConfig | None = None,
        *,
        value_range: ValueRange | str = ValueRange.SIGNED,
        **parameters: Any,
    ) -> None:
        if config is not None and parameters:
            raise TypeError(f"VQModel takes a config or parameters, got both ({', '.join(parameters)})")
        super().__init__(value_range)
        self.config = config or VQModelConfig(**parameters)
        self.in_channels = self.config.in_channels
        self.encoder = Encoder(self.config)
        self.quant_conv = nn.Conv2d(self.config.latent_channels, self.config.embed_dim, 1)
        self.quantize = VectorQuantizer(self.config.num_vq_embeddings, self.config.embed_dim)
        self.post_quant_conv = nn.Conv2d(self.config.embed_dim, self.config.latent_channels, 1)
        self.decoder = Decoder(self.config)

    @classmethod
    def from_pretrained(
        cls,
        source: str | PathLike[str],
        subfolder: str | None = None,
        revision: str | None = None,
        *,
        storage: Storage | None = None,
        value_range: ValueRange | str = ValueRange.SIGNED,
    ) -> Self:
        """Loads a model in diffusers' layout (`config.json` and safetensors); float32, in eval mode, on the CPU.

        Args:
            source: a local folder, a URL of a folder (s3://, gs://, ...), or a Hugging Face Hub id ("owner/name").
            subfolder: folder below `source` that holds the model ("vqvae", "movq", ...).
            revision: branch, tag or commit; for Hub ids only.
            storage: how to reach the store of a URL; None for the defaults.
            value_range: of the pixels that it was trained on; no file says it.

        Raises:
            ModelError: the model cannot be found or read, or its weights do not fit its configuration.
        """
        folder = checkpoint.locate(source, subfolder, revision, storage)
        model = cls(checkpoint.read_config(folder), value_range=value_range)
        checkpoint.load_weights(model, checkpoint.read_weights(folder), folder)
        return model.eval()

    def save_pretrained(self, folder: str | PathLike[str], dtype: torch.dtype = torch.float32) -> None:
        """Writes `config.json` and `diffusion_pytorch_model.safetensors` into `folder`, which is made if need be.

        Args:
            folder: a local folder.
            dtype: of the stored weights; float16 halves the file, and the model loads as the rounded float32 values.
        """
        checkpoint.write(self.config, self.state_dict(), folder, dtype)

    @property
    def codebook_size(self) -> int:
        """Number of codes: tokens are in [0, codebook_size)."""
        return self.config.num_vq_embeddings

    def describe(self) -> dict[str, Any]:
        """Its configuration, in diffusers' words."""
        return self.config.model_dump()

    @property
    def embed_dim(self) -> int:
        """Dimensions of one code."""
        return self.config.embed_dim

    @property
    def downsample(self) -> int:
        """Pixels per token along one side."""
        return self.config.downsample

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.encoder.conv_in.weight.dtype

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return self.encoder.conv_in.weight.device

    @property
    def memory_format(self) -> torch.memory_format:
        """channels_last if the model was converted by `.to(memory_format=torch.channels_last)`."""
        weight = self.encoder.conv_in.weight
        last = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
        return torch.channels_last if last else torch.contiguous_format

    def encode(self, x: Tensor, return_dict: bool = True) -> VQEncoderOutput | tuple[Tensor]:
        """Images [B, in_channels, H, W] in [-1, 1] to latents [B, embed_dim, h, w], not quantized."""
        latents = self._latents(x)
        return VQEncoderOutput(latents) if return_dict else (latents,)

    def decode(
        self,
        h: Tensor,
        force_not_quantize: bool = False,
        return_dict: bool = True,
        shape: tuple[int, int, int, int] | None = None,
    ) -> VQDecoderOutput | tuple[Tensor, Tensor]:
        """Latents to images.

        Args:
            h: latents [B, embed_dim, h, w]. With `force_not_quantize` of a model configured `lookup_from_codebook`:
                indices, [B, h, w] or flat.
            force_not_quantize: take `h` as it is.
            return_dict: give a named result; a plain tuple otherwise.
            shape: (B, h, w, embed_dim), for flat indices.

        Returns:
            The images [B, out_channels, H, W] and the quantizer's loss.
        """
        if not force_not_quantize:
            quantized, loss, _ = self.quantize(h)
        else:
            quantized = self._codes(h, shape) if self.config.lookup_from_codebook else h
            loss = torch.zeros(len(h), device=h.device, dtype=h.dtype)
        sample = self._images(quantized)
        return VQDecoderOutput(sample, loss) if return_dict else (sample, loss)

    def forward(self, sample: Tensor, return_dict: bool = True) -> VQDecoderOutput | tuple[Tensor, Tensor]:
        """Reconstructs `sample` [B, in_channels, H, W] through the quantizer."""
        return self.decode(self._latents(sample), return_dict=return_dict)

    def with_half_encoder(self, dtype: torch.dtype) -> Self:
        """This model with an encoder that computes in float16 or bfloat16; all the rest is shared.

        Convolutions and linear layers are copied and rounded. Norms sum in float32, and the last convolution,
        `quant_conv` and the codes stay float32: docs/precision.md has what that is worth.
        """
        other = copy.copy(self)
        other._modules = dict(self._modules)
        other.encoder = copy.deepcopy(self.encoder)
        for module in other.encoder.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module is not other.encoder.conv_out:
                module.to(dtype)
        return other

    def to_latents(self, pixels: Tensor) -> Tensor:
        """As `encode`, of pixels of the own value range."""
        return self._latents(pixels.to(self.dtype))

    def to_indices(self, latents: Tensor) -> Tensor:
        """The nearest codes, int64 [B, h, w]."""
        return self.quantize.indices(latents)

    def to_images(self, indices: Tensor) -> Tensor:
        """Images [B, out_channels, H, W] of indices [B, h, w], nominally of the own value range."""
        return self._images(self.quantize.lookup(indices))

    def _latents(self, x: Tensor) -> Tensor:
        latents: Tensor = self.quant_conv(self.encoder(x.contiguous(memory_format=self.memory_format)))
        return latents

    def _codes(self, indices: Tensor, shape: tuple[int, int, int, int] | None) -> Tensor:
        return self.quantize.lookup(indices if shape is None else indices.reshape(shape[:3]))

    def _images(self, quantized: Tensor) -> Tensor:
        quantized = quantized.contiguous(memory_format=self.memory_format)
        condition = quantized if self.config.norm_type == "spatial" else None
        images: Tensor = self.decoder(self.post_quant_conv(quantized), condition)
        return images
