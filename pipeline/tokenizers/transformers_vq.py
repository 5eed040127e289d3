"""The image tokenizers of Chameleon, Emu3 and Janus: layers by transformers, indices by our own search.

    Chameleon  ChameleonVQVAE  2405.09818, 2203.13131; transformers has no decoder for it
    Emu3       Emu3VQVAE       2409.18869; a video model: an image is a clip of equal frames
    Janus      JanusVQVAE      2410.13848; codes have unit length when they are decoded

Their folders are what `save_pretrained` of these classes writes: `config.json` and `model*.safetensors`. Indices are
those of transformers' own `encode` but for ties within rounding. Importing this needs the extra `transformers`.
"""

import inspect
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import ChameleonVQVAE, ChameleonVQVAEConfig, Emu3VQVAE, Emu3VQVAEConfig, JanusVQVAE
from transformers.models.janus.configuration_janus import JanusVQVAEConfig

from pipeline.encoding import ModelConfig, ValueRange
from pipeline.errors import ModelError
from pipeline.model import Tokenizer
from pipeline.model.checkpoint import CONFIG_NAME, load_weights, read_json, read_weights
from pipeline.model.quantizer import nearest_codes
from pipeline.tokenizers.families import TRANSFORMERS_STEM, class_name


class TransformersTokenizer(Tokenizer):
    """What the three have in common: an `encoder`, a `quant_conv` and a codebook.

    Args:
        vq: the model of transformers, with its weights.
        value_range: of the pixels that it was trained on.
    """

    def __init__(self, vq: Any, value_range: ValueRange | str = ValueRange.SIGNED) -> None:
        super().__init__(value_range)
        self.vq = vq.float()
        self.in_channels = vq.config.in_channels

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return len(self._codes)

    @property
    def downsample(self) -> int:
        """Pixels per token along one side."""
        return int(2 ** (len(self.vq.config.channel_multiplier) - 1))

    def describe(self) -> dict[str, Any]:
        """The fields that the model's own class of configuration has: not those that all configurations share."""
        document = self.vq.config.to_dict()
        own = inspect.get_annotations(type(self.vq.config))
        return {"family": type(self.vq).__name__, **{name: document[name] for name in sorted(own) if name in document}}

    def to_latents(self, pixels: Tensor) -> Tensor:
        """As transformers' `encode`, up to the quantizer."""
        latents: Tensor = self.vq.quant_conv(self.vq.encoder(pixels))
        return latents

    def to_indices(self, latents: Tensor) -> Tensor:
        """The nearest codes."""
        batch, dims, height, width = latents.shape
        vectors = latents.permute(0, 2, 3, 1).reshape(-1, dims)
        return nearest_codes(vectors, self._codes).view(batch, height, width)

    @property
    def _codes(self) -> Tensor:
        codes: Tensor = self.vq.quantize.embedding.weight
        return codes


class ChameleonTokenizer(TransformersTokenizer):
    """Chameleon's, which transformers can only encode with."""

    decodes = False

    def to_images(self, indices: Tensor) -> Tensor:  # noqa: ARG002
        """Not to be had."""
        raise ModelError(
            "transformers has no decoder for Chameleon's tokens; convert Chameleon's own checkpoint instead"
        )


class Emu3Tokenizer(TransformersTokenizer):
    """Emu3's: an image is a clip of `temporal_downsample_factor` equal frames, and gives one grid."""

    def prepared(self, device: torch.device) -> Self:
        """On `device`; channels_last is for images, and these are clips."""
        return self.to(device).eval()

    def to_latents(self, pixels: Tensor) -> Tensor:
        """As transformers' `encode`, up to the quantizer."""
        frames = self.vq.config.temporal_downsample_factor
        features = self.vq.encoder(pixels.contiguous().unsqueeze(1).repeat(1, frames, 1, 1, 1))  # [B, 1, C, h, w]
        latents: Tensor = self.vq.quant_conv(features.permute(0, 2, 1, 3, 4))  # [B, D, 1, h, w]
        return latents.squeeze(2)

    def to_images(self, indices: Tensor) -> Tensor:
        """As transformers' `decode`: the first frame."""
        images: Tensor = self.vq.decode(indices)
        return images


class JanusTokenizer(TransformersTokenizer):
    """Janus's. transformers compares latents with codes as they are, and decodes codes of unit length."""

    def to_images(self, indices: Tensor) -> Tensor:
        """As transformers' `decode`, of grids of any size."""
        codes = normalize(self._codes[indices], dim=-1).permute(0, 3, 1, 2)
        images: Tensor = self.vq.decoder(self.vq.post_quant_conv(codes.contiguous()))
        return images


_CLASSES: dict[str, tuple[Any, Any, type[TransformersTokenizer]]] = {
    "ChameleonVQVAE": (ChameleonVQVAE, ChameleonVQVAEConfig, ChameleonTokenizer),
    "Emu3VQVAE": (Emu3VQVAE, Emu3VQVAEConfig, Emu3Tokenizer),
    "JanusVQVAE": (JanusVQVAE, JanusVQVAEConfig, JanusTokenizer),
}


def load(folder: Path, config: ModelConfig) -> TransformersTokenizer:
    """Loads one of the three.

    Raises:
        ModelError: the configuration or the weights are damaged, or do not fit each other.
    """
    document = read_json(folder / CONFIG_NAME)
    model_class, config_class, family = _CLASSES[class_name(document)]
    try:
        vq = model_class(config_class.from_dict(document))
    except (ValueError, TypeError) as error:
        raise ModelError(f"{folder / CONFIG_NAME}: describes no {model_class.__name__}: {error}") from error
    load_weights(vq, read_weights(folder, TRANSFORMERS_STEM), folder)
    return family(vq, config.value_range).eval()
