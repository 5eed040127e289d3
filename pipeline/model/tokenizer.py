"""The interface of all tokenizers: pixels to indices and back. `VQModel` is one, other families are in `tokenizers/`.

A family says how images of its own value range become latents, latents indices, and indices images. What all have in
common is done here: uint8 or floating images, the value range, checks, half precisions, the hash of the weights.
"""

import copy
from abc import ABC, abstractmethod
from typing import Any, Self

import torch
from torch import Tensor, nn

from pipeline.encoding import ValueRange
from pipeline.errors import ModelError
from pipeline.model.checkpoint import weights_hash

_IMAGE_DIMS = 4
_HALF_RANGE = 127.5  # maps [0, 255] to [-1, 1]


def normalise(images: Tensor, value_range: ValueRange = ValueRange.SIGNED) -> Tensor:
    """uint8 images [B, H, W, C] to float32 [B, C, H, W]: x / 127.5 - 1, or x / 255. The result is channels_last."""
    planes = images.permute(0, 3, 1, 2).float()
    if value_range is ValueRange.UNIT:
        return planes.div_(2 * _HALF_RANGE)
    return planes.div_(_HALF_RANGE).sub_(1.0)


def denormalise(images: Tensor) -> Tensor:
    """Images [B, C, H, W] in [-1, 1] to uint8 [B, H, W, C], rounded: the way back from `normalise`."""
    return images.float().add(1.0).mul(_HALF_RANGE).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


class Tokenizer(nn.Module, ABC):
    """An encoder, a quantizer and a decoder.

    Weights are float32 parameters and buffers, found by `state_dict`: they are hashed. What else decides the tokens is
    said by `describe`.

    Args:
        value_range: of the pixels that it was trained on. `encode_indices` and `decode_indices` mind it, so that their
            callers need not.

    Attributes:
        in_channels: of its images.
        decodes: whether it has a decoder. Without one QA cannot look at what the tokens show.
    """

    in_channels: int = 3
    decodes: bool = True

    def __init__(self, value_range: ValueRange | str = ValueRange.SIGNED) -> None:
        super().__init__()
        self.value_range = ValueRange(value_range)
        self._half: torch.dtype | None = None

    @property
    @abstractmethod
    def codebook_size(self) -> int:
        """Number of codes: tokens are in [0, codebook_size)."""

    @property
    @abstractmethod
    def downsample(self) -> int:
        """Pixels per token along one side."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What decides the tokens beside the weights, as JSON: geometry, quantizer. It goes into the fingerprint."""

    @abstractmethod
    def to_latents(self, pixels: Tensor) -> Tensor:
        """Images [B, in_channels, H, W] of the own value range to latents [B, D, h, w], not quantized."""

    @abstractmethod
    def to_indices(self, latents: Tensor) -> Tensor:
        """Latents [B, D, h, w] to int64 [B, h, w] in [0, codebook_size); in float32, ties to the lowest index."""

    @abstractmethod
    def to_images(self, indices: Tensor) -> Tensor:
        """Indices int64 [B, h, w] to images [B, 3, h*downsample, w*downsample], nominally of the own value range."""

    def weights_hash(self) -> str:
        """Identity of the weights: 64 hex digits."""
        return weights_hash(self)

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return next((tensor.device for tensor in self.state_dict().values()), torch.device("cpu"))

    def prepared(self, device: torch.device) -> Self:
        """This tokenizer, on `device`, in the memory format in which it is fastest, ready for `encode_indices`."""
        return self.to(memory_format=torch.channels_last).to(device).eval()  # type: ignore[no-any-return, call-overload]

    def with_half_encoder(self, dtype: torch.dtype) -> Self:
        """This tokenizer with an encoder that computes in float16 or bfloat16 where torch's autocast thinks it safe.

        The weights are shared, and the indices are still found in float32.
        """
        other = copy.copy(self)
        other._half = dtype
        return other

    @torch.no_grad()
    def encode_indices(self, images: Tensor) -> Tensor:
        """Tokens of images: the job's hot path.

        Args:
            images: uint8 [B, H, W, in_channels], or floating [B, in_channels, H, W] in [-1, 1]; on the model's device.

        Returns:
            int64 [B, H/downsample, W/downsample] in [0, codebook_size). Distances are float32 always, ties go to the
            lowest index.

        Raises:
            ValueError: the images' dtype, dimensions, channels or sides do not suit the model.
        """
        return self.to_indices(self.encode_latents(images))

    @torch.no_grad()
    def encode_latents(self, images: Tensor) -> Tensor:
        """Latents [B, D, h, w], not quantized, of images as `encode_indices` takes them.

        Raises:
            ValueError: as `encode_indices`.
        """
        self._check_images(images)
        if images.dtype == torch.uint8:
            pixels = normalise(images, self.value_range)
        else:
            pixels = images if self.value_range is ValueRange.SIGNED else (images + 1) / 2
        if self._half is None:
            return self.to_latents(pixels)
        with torch.autocast(pixels.device.type, self._half):
            return self.to_latents(pixels).float()

    @torch.no_grad()
    def decode_indices(self, indices: Tensor) -> Tensor:
        """Images of tokens.

        Args:
            indices: integers [B, h, w] in [0, codebook_size), on the model's device.

        Returns:
            [B, 3, h*downsample, w*downsample] in the weights' dtype, clamped to [-1, 1].

        Raises:
            ModelError: the model has no decoder.
            ValueError: `indices` has another number of dimensions.
        """
        if not self.decodes:
            raise ModelError(f"this {type(self).__name__} has no decoder: its tokens cannot be shown")
        if indices.ndim != _IMAGE_DIMS - 1:
            raise ValueError(f"indices must be [B, h, w], got shape {tuple(indices.shape)}")
        images = self.to_images(indices.long())
        if self.value_range is ValueRange.UNIT:
            images = images * 2 - 1
        return images.clamp(-1.0, 1.0)

    def _check_images(self, images: Tensor) -> None:
        if images.ndim != _IMAGE_DIMS or not (images.dtype == torch.uint8 or images.is_floating_point()):
            raise ValueError(
                "images must be uint8 [B, H, W, C] or floating [B, C, H, W], "
                f"got {images.dtype} of shape {tuple(images.shape)}"
            )
        if images.dtype == torch.uint8:
            height, width, channels = images.shape[1:]
        else:
            channels, height, width = images.shape[1:]
        if channels != self.in_channels:
            raise ValueError(f"images must have {self.in_channels} channels, got {channels} in {tuple(images.shape)}")
        if not height or not width or height % self.downsample or width % self.downsample:
            raise ValueError(
                f"image sides must be positive multiples of {self.downsample} (the model's downsampling), "
                f"got {height} x {width}"
            )
