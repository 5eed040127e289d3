"""The VQ model: geometry, layers, checkpoints, and pixels to tokens and back."""

from pipeline.model.checkpoint import weights_hash
from pipeline.model.config import VQModelConfig
from pipeline.model.tokenizer import Tokenizer, denormalise, normalise
from pipeline.model.vq_model import VQDecoderOutput, VQEncoderOutput, VQModel

__all__ = [
    "Tokenizer",
    "VQDecoderOutput",
    "VQEncoderOutput",
    "VQModel",
    "VQModelConfig",
    "denormalise",
    "normalise",
    "weights_hash",
]
