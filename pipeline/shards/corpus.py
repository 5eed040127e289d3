"""WebDataset shards of web-like images, cut out of a folder of photographs: inputs for the demo, tests and benchmarks.

Every sample is a random crop of a random photo, rescaled to a log-uniform long side and encoded the way images on the
web are: mostly baseline 4:2:0 JPEG of quality 75-95, some progressive, gray, CMYK and EXIF-rotated, a few PNG and WebP.
"""

import io
import json
import math
import os
import random
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator
from webdataset import TarWriter

from pipeline.errors import UsageError

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png")
EXIF_ORIENTATION_TAG = 0x0112

# Width over height -> weight; what cameras, phones and page layouts make.
_ASPECTS = {3 / 2: 30, 4 / 3: 20, 1.0: 18, 16 / 9: 12, 2 / 3: 8, 3 / 4: 8, 2.1: 2, 0.5: 2}
_KINDS = {"jpeg": 78, "progressive": 6, "gray": 4, "cmyk": 2, "exif": 4, "png": 3, "webp": 3}
_JPEG_ONLY = {"jpeg": 1}

T = TypeVar("T")


class CorpusConfig(BaseModel):
    """How many images, and which."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shards: int = Field(8, ge=1, le=100_000, description="shards to write (count)")
    samples: int = Field(250, ge=1, le=100_000, description="samples in each shard (count)")
    seed: int = Field(0, description="another seed gives other crops of the same photos")
    min_side: int = Field(320, ge=16, description="shortest long side of an image (pixels)")
    max_side: int = Field(1600, ge=16, description="longest long side of an image (pixels), where the photo has it")
    jpeg_only: bool = Field(False, description="plain RGB JPEG alone, which every reader takes")

    @model_validator(mode="after")
    def _sides_in_order(self) -> Self:
        if self.min_side > self.max_side:
            raise ValueError(f"min_side must be at most max_side, got {self.min_side} and {self.max_side}")
        return self


def make_corpus(photos: Path, out: Path, config: CorpusConfig | None = None) -> list[Path]:
    """Write `config.shards` shards of `config.samples` samples into `out`.

    The members of a sample are the image, `txt` (a caption) and `json` (width and height as encoded, name of the
    photo). The same photos and configuration give the same bytes on one version of Pillow. A shard appears under its
    name only when it is whole, and replaces one that was there.

    Args:
        photos: folder with the photographs (`.jpg`, `.jpeg`, `.png`), at any depth.
        out: folder for `00000.tar`, `00001.tar`, ...; made if missing.
        config: sizes, kinds and numbers.

    Returns:
        The shards, in order.

    Raises:
        UsageError: if `photos` holds no photograph that is large enough, or one that cannot be read.
    """
    config = config or CorpusConfig()
    sources = _load(photos, config.min_side)
    out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow releases the GIL
        return list(pool.map(lambda number: _write_shard(out, number, sources, config), range(config.shards)))


def _load(folder: Path, min_side: int) -> list[tuple[str, Image.Image]]:
    """(name, RGB pixels) of every photo in which a crop of `min_side` fits."""
    if not folder.is_dir():
        raise UsageError(f"photos must be a folder, got {folder}")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES)
    photos = [(path.stem, _open(path)) for path in paths]
    large = [(name, photo) for name, photo in photos if min(photo.size) >= min_side]
    if not large:
        wanted = ", ".join(PHOTO_SUFFIXES)
        got = f"none of the {len(photos)} there is"
        raise UsageError(f"{folder} must hold photos ({wanted}) of at least {min_side} pixels a side, {got}")
    return large


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as photo:
            return photo.convert("RGB")
    except OSError as exc:
        raise UsageError(f"photo {path} cannot be read ({exc}); remove or replace it") from exc


def _write_shard(out: Path, number: int, photos: list[tuple[str, Image.Image]], config: CorpusConfig) -> Path:
    path = out / f"{number:05d}.tar"
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    rng = random.Random(f"{config.seed}/{number}")  # noqa: S311  a shard's images depend on its number alone
    try:
        with partial.open("wb") as file, TarWriter(file, encoder=False, mtime=0) as writer:
            for index in range(config.samples):
                writer.write({"__key__": f"{number:05d}{index:05d}", **_sample(rng, photos, config)})
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _sample(rng: random.Random, photos: list[tuple[str, Image.Image]], config: CorpusConfig) -> dict[str, bytes]:
    """Extension -> content of one sample."""
    name, photo = rng.choice(photos)
    image = _crop(rng, photo, config.min_side, config.max_side)
    extension, encoded = _encode(rng, image, _JPEG_ONLY if config.jpeg_only else _KINDS)
    sidecar = {"width": image.width, "height": image.height, "photo": name}
    return {extension: encoded, "txt": f"a photo of {name}".encode(), "json": json.dumps(sidecar).encode()}


def _crop(rng: random.Random, photo: Image.Image, min_side: int, max_side: int) -> Image.Image:
    """A random crop of the photo, never scaled up."""
    long_side = math.exp(rng.uniform(math.log(min_side), math.log(max_side)))
    aspect = _pick(rng, _ASPECTS) * math.exp(rng.uniform(-0.05, 0.05))
    width, height = long_side * min(1.0, aspect), long_side * min(1.0, 1 / aspect)
    fit = min(1.0, photo.width / width, photo.height / height)
    width, height = max(1, int(width * fit)), max(1, int(height * fit))

    largest = min(photo.width / width, photo.height / height)
    factor = math.exp(rng.uniform(math.log(max(1.0, 0.35 * largest)), math.log(largest)))
    box_width, box_height = int(width * factor), int(height * factor)
    left, top = rng.randint(0, photo.width - box_width), rng.randint(0, photo.height - box_height)
    box = (left, top, left + box_width, top + box_height)
    image = photo.resize((width, height), Image.Resampling.LANCZOS, box=box, reducing_gap=2.0)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image


def _encode(rng: random.Random, image: Image.Image, kinds: Mapping[str, int]) -> tuple[str, bytes]:
    """(extension, encoded bytes) of the image as one of `kinds`, drawn by weight."""
    kind, quality, out = _pick(rng, kinds), rng.randint(75, 95), io.BytesIO()
    if kind == "png":
        image.save(out, "PNG")
        return "png", out.getvalue()
    if kind == "webp":
        image.save(out, "WEBP", quality=quality)
        return "webp", out.getvalue()
    options: dict[str, Any] = {"quality": quality, "subsampling": "4:2:0", "progressive": kind == "progressive"}
    if kind == "exif":
        options["exif"] = exif = Image.Exif()
        exif[EXIF_ORIENTATION_TAG] = rng.choice([3, 6, 8])  # as cameras held upside down, right and left write it
    mode = {"gray": "L", "cmyk": "CMYK"}.get(kind, "RGB")
    image.convert(mode).save(out, "JPEG", **options)
    return "jpg", out.getvalue()


def _pick(rng: random.Random, weights: Mapping[T, int]) -> T:
    return rng.choices(list(weights), list(weights.values()))[0]
