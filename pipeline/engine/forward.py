"""The model in one precision: uint8 images on the device to indices, and whether each image's arithmetic held."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pipeline.encoding import Precision
from pipeline.model import Tokenizer

COMPILED_SHAPES = 64  # torch.compile gives up at 8 by default; each batch size in each precision is one
HALVES = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}


@contextmanager
def arithmetic(device: torch.device, precision: Precision) -> Iterator[None]:
    """What runs inside may round float32 products to TF32 only if the precision says so; gradients are off.

    The switches are process-wide: only the device's own thread works in here. They have newer names too
    (`fp32_precision`), but torch.compile reads these, and fails where the newer ones said something else (torch 2.13).
    """
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision is Precision.TF32
    with torch.inference_mode():
        yield


class Forward:
    """Pixels to tokens.

    Args:
        model: on its device; it is not changed, and shared but for what a half precision rounds.
        precision: arithmetic of the encoder.
        compiled: run the encoder through torch.compile, for fixed shapes, whole or not at all. Without choosing kernels
            by measuring them: two actors that chose others would give parts of different bytes.
    """

    def __init__(self, model: Tokenizer, precision: Precision, *, compiled: bool = False) -> None:
        half = HALVES.get(precision)
        self._model = model.with_half_encoder(half) if half else model
        self._precision = precision
        self._latents: Callable[[Tensor], Tensor] = self._model.encode_latents
        if compiled:
            torch._dynamo.config.recompile_limit = COMPILED_SHAPES
            self._latents = torch.compile(self._latents, dynamic=False, fullgraph=True, options={"deterministic": True})

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a batch.

        Args:
            images: uint8 [n, H, W, C].

        Returns:
            Indices int64 [n, h, w]; and bool [n], False where a latent is infinite or no number: float16 ends at
            65,504, and the indices of such an image mean nothing.
        """
        with arithmetic(images.device, self._precision):
            latents = self._latents(images)
            return self._model.to_indices(latents), latents.isfinite().flatten(1).all(dim=1)
