"""A tokenizer on one device: uint8 images in, indices out, a few fixed batch shapes, nothing waits.

* `submit` hands a batch to the device's lane and returns at once; the caller keeps two or so in flight.
* On CUDA copies, kernels and results overlap: see `cuda`.
* On a CPU every core encodes a few images at a time, whatever the batch: see `cpu`.
* An image whose latents leave the range of a half precision is encoded again in float32, alone with its like.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.encoding import Precision, batch_shapes
from pipeline.engine.cpu import Pieces, cpu_lanes, images_at_once, in_pieces
from pipeline.engine.cuda import CudaLine, Gpu, Result, Started, numbered
from pipeline.engine.forward import Forward, arithmetic
from pipeline.errors import ModelError
from pipeline.kernels import try_kernels
from pipeline.meter import Meter, Part
from pipeline.model import Tokenizer, denormalise
from pipeline.tokens.schema import TokenSpec

CUDA_AT_ONCE = 8
CUDA_BESIDE = 2  # images that are decoded, or encoded again, at once: the batches' graphs keep their memory meanwhile

Images = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]
T = TypeVar("T")


class Encoding(Protocol):
    """A batch on its way through the device."""

    def indices(self) -> Indices:
        """Wait for the result: [n, h, w]. Not to be called by work that runs on the device's lane."""
        ...


@dataclass(frozen=True, slots=True)
class _Encoding:
    """A batch that was started, and the way to encode those of its images again that did not hold."""

    images: Images
    started: Started | Pieces
    again: Callable[[Images], Indices]

    def indices(self) -> Indices:
        indices, finite = self.started.result()
        if not finite.all():
            indices[~finite] = self.again(self.images[~finite])
        return indices


class Engine:
    """A model on a device, ready for batches of square images.

    Args:
        model: the tokenizer; it is moved to the device.
        device: `cpu`, `cuda` or `cuda:N`.
        precision: arithmetic of the encoder; `set_precision` changes it.
        image_size: side of the images (pixels), a multiple of the model's downsampling factor; for several shapes, of a
            square of about as many pixels.
        multiple: what the sides of images of several shapes are multiples of (pixels); None: all are squares. On CUDA
            images of several shapes are encoded a few at a time, at once.
        batch_size: images per batch; None for the fewest that keep the device busy; `set_batch_size` changes it.
        meter: counts the device's busy time.
        threads: of the CPU for the model; None for torch's own number.
        compiled: run the encoder through torch.compile.
        graphs: replay CUDA graphs; nothing on a CPU.

    Attributes:
        overflowed: images that had to be encoded again in `exact`, so far.
        first_batch: the fewest images that keep the device busy.

    Raises:
        ModelError: the image size does not fit the model, or the precision does not fit the device.
    """

    def __init__(
        self,
        model: Tokenizer,
        *,
        device: str = "cpu",
        precision: Precision = Precision.EXACT,
        image_size: int,
        multiple: int | None = None,
        batch_size: int | None = None,
        meter: Meter | None = None,
        threads: int | None = None,
        compiled: bool = False,
        graphs: bool = True,
    ) -> None:
        if (multiple or image_size) % model.downsample:
            what = "each side of the recipe's images" if multiple else "image.size"
            raise ModelError(
                f"{what} must be a multiple of {model.downsample} for this model (f{model.downsample}), "
                f"got {multiple or image_size}"
            )
        self.device = numbered(torch.device(device))
        side = 0 if multiple else image_size // model.downsample  # 0 x 0: the grids vary
        self.image_size, self.multiple = image_size, multiple
        self.spec = TokenSpec(model.codebook_size, side, side)
        self.meter = meter or Meter()
        self.overflowed = 0
        self._model = model.prepared(self.device)
        self._arithmetic: tuple[Precision, bool] | None = None
        self._exact = Forward(self._model, Precision.EXACT)
        self._cuda: CudaLine | None = None
        threads = threads or torch.get_num_threads()
        if self.device.type == "cuda" and not multiple:
            gpu, image = Gpu(self.device), (image_size, image_size, model.in_channels)
            self._cuda = CudaLine(gpu, image, (side, side), self.meter, graphs=graphs)
            gpu.synchronize()  # the model came by another stream than the lane's
            self._lanes = ThreadPoolExecutor(1, "device", _enter_lane, (threads, gpu.enter))
            self._at_once, self.first_batch = CUDA_BESIDE, CUDA_AT_ONCE
        elif self.device.type == "cuda":
            enter = partial(torch.cuda.set_device, self.device)
            self._lanes = ThreadPoolExecutor(1, "device", _enter_lane, (threads, enter))
            self._at_once = self.first_batch = CUDA_AT_ONCE
        else:
            self._lanes = cpu_lanes(threads)
            self._at_once = images_at_once(image_size)
            self.first_batch = self._at_once * threads
        if self.device.type == "cuda":
            self.lend(partial(try_kernels, self.device))
        self.batch_size = batch_size or self.first_batch
        self.set_precision(precision, compiled=compiled)

    def set_precision(self, precision: Precision, *, compiled: bool = False) -> None:
        """Encode with this arithmetic from now on, through torch.compile if so asked.

        Raises:
            ModelError: the device does not have it.
        """
        if self.device.type == "cpu" and precision is Precision.TF32:
            raise ModelError("precision tf32 needs a CUDA device; use exact on a CPU")
        if (precision, compiled) == self._arithmetic:
            return  # what is compiled and captured stays so
        self.precision, self._arithmetic = precision, (precision, compiled)
        self._forward = self.lend(lambda: Forward(self._model, precision, compiled=compiled))
        self._prepare()

    def set_batch_size(self, batch_size: int) -> None:
        """Fix the batch shapes that the device will see from now on."""
        if batch_size != self.batch_size:  # else what is captured stays so
            self.batch_size = batch_size
            self._prepare()

    def may_halve(self, allowed: bool) -> None:
        """Whether a batch that does not fit into the device's memory is halved, or raises."""
        if self._cuda:
            self._cuda.may_halve = allowed

    def submit(self, images: Images) -> "Future[Encoding]":
        """Start encoding n <= batch_size images [n, H, W, 3]; they must not be changed before the result is."""
        if self._cuda:
            return self._lanes.submit(self._start, self._cuda, images)
        done: Future[Encoding] = Future()
        pieces = in_pieces(self._lanes, partial(self._piece, self._forward), images, self._at_once)
        done.set_result(_Encoding(images, pieces, self._encode_again))
        return done

    def encode(self, images: Images) -> Indices:
        """Indices [n, h, w] of n <= batch_size images."""
        return self.submit(images).result().indices()

    def decode(self, indices: Indices) -> Images:
        """Images uint8 [n, H, W, 3] of indices [n, h, w], for a look at them: in float32 or TF32, a few at once.

        The device takes them in turn with the batches; only the caller waits for them.
        """
        if self.device.type == "cpu":
            few = max(1, self._at_once // 4)  # its finest levels take more memory than an encoder's, image by image
            return torch.cat(list(self._lanes.map(self._decode_piece, _pieces(indices, few)))).numpy()
        images, done = self.lend(lambda: self._decode_all(indices))
        if done is not None:
            done.synchronize()
        return images.cpu().numpy()

    def lend(self, work: Callable[[], T]) -> T:
        """Have other work done on the device, in turn with the batches; only the caller waits for it."""
        return self._lanes.submit(work).result()

    def warm_up(self) -> None:
        """Run every batch shape once: compilation and algorithm choice happen now."""
        for shape in () if self.multiple else self._shapes:
            self.encode(np.zeros((shape, self.image_size, self.image_size, 3), np.uint8))

    def try_beside(self, images: Images) -> None:
        """Do what happens beside the batches: images are encoded again in float32, and decoded if the model can.

        Raises:
            torch.OutOfMemoryError: the batches leave too little of the device's memory.
        """
        again = self._exactly(images)
        if self._model.decodes:
            self.decode(again)

    def close(self) -> None:
        """End the device's lanes."""
        self._lanes.shutdown(wait=True, cancel_futures=True)

    def _prepare(self) -> None:
        self._shapes = batch_shapes(self.batch_size)
        if self._cuda:
            self.lend(partial(self._cuda.prepare, self._forward, self._shapes))

    def _start(self, line: CudaLine, images: Images) -> Encoding:
        return _Encoding(images, line.start(images), self._encode_again)

    def _piece(self, forward: Forward, images: Images) -> Result:
        """Encode a few images now."""
        with self.meter.busy(Part.ENCODE):
            found, held = forward(torch.from_numpy(_padded(images, self._at_once)).to(self.device))
            return found[: len(images)].cpu().numpy(), held[: len(images)].cpu().numpy()

    def _encode_again(self, images: Images) -> Indices:
        self.overflowed += len(images)
        return self._exactly(images)

    def _exactly(self, images: Images) -> Indices:
        """Encode in float32."""
        return in_pieces(self._lanes, partial(self._piece, self._exact), images, self._at_once).result()[0]

    def _decode_piece(self, indices: Indices) -> Tensor:
        """The images of a few grids, now."""
        loose = Precision.EXACT if self.precision is Precision.EXACT else Precision.TF32
        with arithmetic(self.device, loose):
            return denormalise(self._model.decode_indices(torch.from_numpy(indices).to(self.device)))

    def _decode_all(self, indices: Indices) -> tuple[Tensor, Any]:
        """The images, and on CUDA the event after which they are there."""
        images = torch.cat([self._decode_piece(piece) for piece in _pieces(indices, CUDA_BESIDE)])
        return images, torch.cuda.current_stream(self.device).record_event() if self._cuda else None


def _pieces(indices: Indices, most: int) -> list[Indices]:
    return [indices[i : i + most] for i in range(0, len(indices), most)] or [indices]


def _enter_lane(threads: int, enter: Callable[[], None]) -> None:
    torch.set_num_threads(threads)
    enter()


def _padded(images: Images, size: int) -> Images:
    if len(images) == size:
        return images
    padded = np.zeros((size, *images.shape[1:]), np.uint8)
    padded[: len(images)] = images
    return padded
