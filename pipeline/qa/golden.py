"""Golden images: pictures whose tokens are known, to be given by every device before it does any work.

Known from MODEL/golden.parquet, which was written with the model: then a wrong checkpoint shows as well. Where there is
none, from the model itself, computed in float32 on the CPU along another way than the engine's: then a broken device,
changed preprocessing or reckless arithmetic show. An engine takes images of one size: where those that the model brings
are of another, both ways are gone, the model's own images on the CPU.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from pipeline.engine import Images, Indices
from pipeline.errors import ModelError, NotFound, Reject
from pipeline.images import ImageConfig, Prepared, prepare
from pipeline.model import Tokenizer
from pipeline.storage import Storage

GOLDEN_NAME = "golden.parquet"
PICTURES = 4  # where the model brings none
GOLDEN_SCHEMA = pa.schema(
    [
        pa.field(name, kind, nullable=False)
        for name, kind in {
            "key": pa.string(),
            "image": pa.binary(),
            "grid_height": pa.uint16(),
            "grid_width": pa.uint16(),
            "grid": pa.list_(pa.uint32()),
        }.items()
    ]
)

Prepare = Callable[[bytes, ImageConfig], Prepared | Reject]


class Encoder(Protocol):
    """What gives tokens for images: an engine."""

    batch_size: int

    def encode(self, images: Images, /) -> Indices:
        """Indices [n, h, w] of n <= batch_size images [n, size, size, 3]."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Golden:
    """A square picture with its tokens.

    Attributes:
        key: its name.
        image: PNG, RGB.
        grid: int64 [h, w].
    """

    key: str
    image: bytes
    grid: Indices


def golden_of(
    model: Tokenizer, storage: Storage, source: str, subfolder: str | None, size: int
) -> tuple[list[Golden], float]:
    """Golden images for every device, and what the model itself makes of those that it brings.

    Args:
        model: in float32 on the CPU: before an engine takes it.
        storage: of the model.
        source: folder, URL or hub id of the model.
        subfolder: inside it.
        size: of the run's images (pixels).

    Returns:
        Golden images of about `size`; the fraction of their tokens that the model gives for brought ones of another
        size, in float32 on the CPU (1.0 if there are none).

    Raises:
        ModelError: the model brings a damaged file, or that of another model.
    """
    fitting = max(1, size // model.downsample) * model.downsample  # any other is refused by the engine, in its words
    brought = read_golden(storage, source, subfolder) or []
    if brought and all(_side(one) == fitting for one in brought):
        return brought, 1.0
    made = make_golden(model, procedural_pictures(fitting))
    return made, golden_agreement(_Plain(model), brought) if brought else 1.0


def make_golden(model: Tokenizer, pictures: Mapping[str, npt.NDArray[np.uint8]]) -> list[Golden]:
    """Golden images of a model.

    Args:
        model: in float32 on the CPU.
        pictures: name -> uint8 [size, size, 3], the size a multiple of the model's downsampling.
    """
    return [Golden(key, _png(pixels), _reference(model, pixels)) for key, pixels in sorted(pictures.items())]


def procedural_pictures(size: int) -> dict[str, npt.NDArray[np.uint8]]:
    """Pictures without a file: colours in patches of all scales, the coarse ones strongest, as in photographs."""
    return {f"procedural-{seed}": _picture(size, np.random.default_rng(seed)) for seed in range(PICTURES)}


def write_golden(path: Path, golden: Sequence[Golden]) -> None:
    """Write golden images into a model's folder, or a file of another name."""
    rows = [
        {
            "key": one.key,
            "image": one.image,
            "grid_height": one.grid.shape[0],
            "grid_width": one.grid.shape[1],
            "grid": one.grid.reshape(-1).tolist(),
        }
        for one in golden
    ]
    pq.write_table(pa.Table.from_pylist(rows, GOLDEN_SCHEMA), path / GOLDEN_NAME if path.is_dir() else path)


def read_golden(storage: Storage, model: str, subfolder: str | None = None) -> list[Golden] | None:
    """The golden images that a model brings; None if it brings none, or is a hub id.

    Args:
        storage: of the model.
        model: folder or URL.
        subfolder: inside it.

    Raises:
        ModelError: the file is damaged.
    """
    url = "/".join([model.rstrip("/"), *([subfolder.strip("/")] if subfolder else []), GOLDEN_NAME])
    try:
        table = pq.read_table(io.BytesIO(storage.read(url)), schema=GOLDEN_SCHEMA)
        golden = [
            Golden(row["key"], row["image"], np.array(row["grid"]).reshape(row["grid_height"], row["grid_width"]))
            for row in table.to_pylist()
        ]
    except NotFound:
        return None
    except (pa.ArrowException, ValueError) as error:
        raise ModelError(f"{url}: cannot be read as golden images ({error}); make it again, or remove it") from error
    return golden or None


def golden_agreement(encoder: Encoder, golden: Sequence[Golden], prepare: Prepare = prepare) -> float:
    """The fraction of the golden tokens that a device gives, from files to tokens as in the run.

    The pictures have the model's size already, which leaves a recipe nothing to do but decode.

    Args:
        encoder: the engine on the device.
        golden: at least one picture, all of one size.
        prepare: decodes them.

    Raises:
        ModelError: a golden image cannot be decoded, or the golden grids are of another model.
    """
    images = np.stack([_pixels(one, prepare) for one in golden])
    size = encoder.batch_size
    found = np.concatenate([encoder.encode(images[i : i + size]) for i in range(0, len(images), size)])
    expected = np.stack([one.grid for one in golden])
    if found.shape != expected.shape:
        raise ModelError(
            f"golden grids must be {found.shape[1:]} for images of {images.shape[1]} pixels, got {expected.shape[1:]}: "
            f"{GOLDEN_NAME} belongs to another model"
        )
    return float((found == expected).mean())


class _Plain:
    """The model as an encoder, for images of any size."""

    batch_size = 1

    def __init__(self, model: Tokenizer) -> None:
        self._model = model

    def encode(self, images: Images, /) -> Indices:
        return np.stack([_reference(self._model, image) for image in images])


def _reference(model: Tokenizer, pixels: npt.NDArray[np.uint8]) -> Indices:
    """Tokens by way of floating images in [-1, 1], one at a time: independent of the engine and its normalisation."""
    image = torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    with torch.inference_mode():
        return model.encode_indices(image)[0].numpy()


def _pixels(golden: Golden, prepare: Prepare) -> npt.NDArray[np.uint8]:
    prepared = prepare(golden.image, ImageConfig(size=_side(golden)))
    if isinstance(prepared, Reject):
        raise ModelError(f"the golden image {golden.key} cannot be decoded: {prepared.reason} ({prepared.detail})")
    return prepared.views[0].pixels


def _side(golden: Golden) -> int:
    with Image.open(io.BytesIO(golden.image)) as picture:
        return picture.width


def _picture(size: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    total, patches = np.zeros((size, size, 3)), 2
    while patches <= size:
        noise = Image.fromarray(rng.integers(0, 256, (patches, patches, 3), np.uint8))
        total += (np.asarray(noise.resize((size, size), Image.Resampling.BICUBIC)) / 255.0 - 0.5) / patches**0.75
        patches *= 2
    pixels: npt.NDArray[np.uint8] = np.clip(128 + 128 * total / np.abs(total).max(), 0, 255).astype(np.uint8)
    return pixels


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()
