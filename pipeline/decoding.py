"""Rows back to pictures: those of some keys, or some by lot, as files or as a WebDataset."""

import io
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, groupby, islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from pipeline.encoding import ModelConfig, ValueRange
from pipeline.errors import ModelError, NotFound, UsageError
from pipeline.exports.format import key_of, tar_writer, text_of
from pipeline.exports.source import Source
from pipeline.model import Tokenizer, denormalise
from pipeline.scratch import draft_folder
from pipeline.select import keys_in
from pipeline.shards.manifest import shard_id
from pipeline.storage import Storage
from pipeline.tokenizers import load_tokenizer
from pipeline.tokens.parts import Part
from pipeline.urls import canonical, join

BATCH = 8  # images that the model decodes at once
TAR_SAMPLES = 1000
KEY_THREADS = 8  # parts whose keys are looked through at once
COLUMNS = ("key", "shard", "sample_index", "view", "tokens", "grid_height", "grid_width", "caption", "label")
# In a key, which is somebody else's: `../x` must not become a path, and a letter must be a byte, as names have 255.
_ODD = re.compile(r"[^A-Za-z0-9._-]+")


class DecodeConfig(BaseModel):
    """Which rows to decode, and what to make of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    to: str = Field(..., description="folder or URL that receives the pictures")
    keys: tuple[str, ...] = Field((), description="decode the rows of these keys, and of the lists that are @URL")
    sample: int | None = Field(None, gt=0, description="decode so many rows by lot (rows)")
    seed: int = Field(0, ge=0, description="of the lot")
    form: str = Field("png", pattern="^(png|webp|tar)$", description="png or webp: files; tar: a WebDataset of PNG")
    model: str | None = Field(None, description="the VQ model; null takes the one in job.json")
    allow_torchscript: bool = Field(False, description="run the program that a TorchScript model is")


@dataclass(frozen=True, slots=True)
class Picture:
    """One row, decoded.

    Attributes:
        row: key, shard, sample_index, view; caption and label if the run has them.
        pixels: uint8 [H, W, 3].
    """

    row: Mapping[str, Any]
    pixels: npt.NDArray[np.uint8]

    @property
    def name(self) -> str:
        """A file name without extension, of no other row: shard, number in it, view, and what is left of the key."""
        key = _ODD.sub("_", self.row["key"]).strip(".")[:80]
        return f"{shard_id(self.row['shard'])}-{self.row['sample_index']:06d}-{self.row['view']}-{key}"

    def encoded(self, form: str) -> bytes:
        """The picture as a lossless PNG or WebP."""
        buffer = io.BytesIO()
        Image.fromarray(self.pixels).save(buffer, form, **({"lossless": True} if form == "webp" else {}))
        return buffer.getvalue()


def decode(source: Source, config: DecodeConfig) -> int:
    """Decode rows of a run into pictures; returns how many.

    Raises:
        UsageError: a key is not in the run, or neither keys nor a number of rows are given.
        ModelError: the model cannot be read, or did not make these tokens.
    """
    rows = choose(source, config)
    pictures = _pictures(source, rows, load_model(source, config.model, allow_torchscript=config.allow_torchscript))
    if config.form == "tar":
        return _write_tars(source, pictures, canonical(config.to))
    count = 0
    for picture in pictures:
        source.storage.write(join(canonical(config.to), f"{picture.name}.{config.form}"), picture.encoded(config.form))
        count += 1
    return count


def choose(source: Source, config: DecodeConfig) -> npt.NDArray[np.int64]:
    """The numbers of the rows to decode, ascending.

    Raises:
        UsageError: a key is not in the run, a list cannot be read, or not exactly one of keys and sample is given.
    """
    if bool(config.keys) == (config.sample is not None):
        raise UsageError("tell what to decode: either --keys or --sample")
    if config.sample is not None:
        count = min(config.sample, source.rows)
        return np.sort(np.random.default_rng(config.seed).choice(source.rows, count, replace=False))
    return _rows_of_keys(source, {key for given in config.keys for key in _expanded(source.storage, given)})


def load_model(source: Source, reference: str | None = None, *, allow_torchscript: bool = False) -> Tokenizer:
    """The model that made the tokens of a run, on the GPU if there is one.

    Args:
        source: the run.
        reference: another place of the same model; None for that in job.json.
        allow_torchscript: run the program that it may be. The leave in job.json is that of whoever made the run.

    Raises:
        ModelError: it cannot be read, or has other weights.
    """
    stored, expected = source.job["config"]["model"], source.job["identity"]["weights"]
    found = ModelConfig(path=stored["path"], subfolder=stored["subfolder"], revision=stored["revision"])
    config = (ModelConfig(path=reference) if reference else found).model_copy(
        update={
            "value_range": ValueRange(source.job["identity"]["model"].get("value_range", ValueRange.SIGNED)),
            "allow_torchscript": allow_torchscript,
            "sha256": expected,
        }
    )
    model = load_tokenizer(config, source.storage)
    if (digest := model.weights_hash()) != expected:
        raise ModelError(
            f"{config.path}: did not make these tokens: its weights' hash is {digest[:12]}, the run's {expected[:12]}; "
            "give the right one as --model"
        )
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def _expanded(storage: Storage, given: str) -> list[str]:
    """A key, or those in the lines of an `@list`."""
    if not given.startswith("@"):
        return [given]
    try:
        return keys_in(storage.read(given[1:]))
    except (NotFound, ValueError) as error:
        raise UsageError(f"--keys @LIST must be a text file with one key per line, got {given}: {error}") from error


def _rows_of_keys(source: Source, keys: Collection[str]) -> npt.NDArray[np.int64]:
    parts = source.parts.parts
    offsets = np.cumsum([0, *(part.rows for part in parts)])

    def find(part: Part, offset: int) -> tuple[npt.NDArray[np.int64], set[str]]:
        one = Source(source.storage, source.parts.of(part), source.job, source.summary)
        tables = list(one.read(0, part.rows, ["key"]))
        column = pa.chunked_array([chunk for table in tables for chunk in table.column("key").chunks], pa.string())
        chosen = np.flatnonzero(pc.is_in(column, pa.array(sorted(keys))).to_numpy())
        return chosen + offset, set(column.take(pa.array(chosen)).to_pylist())

    with ThreadPoolExecutor(KEY_THREADS) as pool:
        found = list(pool.map(find, parts, offsets))
    if missing := sorted(set(keys).difference(*(names for _, names in found))):
        raise UsageError(f"{len(missing)} of {len(keys)} keys are not in the run, such as {missing[0]!r}")
    return np.concatenate([rows for rows, _ in found])


def _pictures(source: Source, rows: npt.NDArray[np.int64], model: Tokenizer) -> Iterator[Picture]:
    columns = [name for name in COLUMNS if name in source.parts.schema.names]
    told = (row for table in source.take(rows, columns) for row in table.to_pylist())
    for grid, same in groupby(told, lambda row: (row["grid_height"], row["grid_width"])):
        while batch := list(islice(same, BATCH)):
            yield from _decoded(batch, grid, model)


def _decoded(rows: Sequence[dict[str, Any]], grid: tuple[int, int], model: Tokenizer) -> Iterator[Picture]:
    indices = torch.tensor([row.pop("tokens") for row in rows], device=model.device).reshape(len(rows), *grid)
    images = denormalise(model.decode_indices(indices))
    for row, pixels in zip(rows, images.cpu().numpy(), strict=True):
        yield Picture(row, pixels)


def _write_tars(source: Source, pictures: Iterator[Picture], to: str) -> int:
    count = 0
    while (first := next(pictures, None)) is not None:
        some = chain([first], islice(pictures, TAR_SAMPLES - 1))
        with draft_folder() as folder:
            path, url = folder / "tar", join(to, f"{count // TAR_SAMPLES:05d}.tar")
            with tar_writer(path) as tar:
                for picture in some:
                    tar.write({"__key__": key_of(count), **_members(picture)})
                    count += 1
            source.storage.put(url, path)
    return count


def _members(picture: Picture) -> dict[str, bytes]:
    told = {name: picture.row[name] for name in ("key", "shard", "sample_index", "view")}
    members = {"png": picture.encoded("png"), "json": json.dumps(told).encode()}
    members["txt"] = text_of(picture.row)
    if picture.row.get("label") is not None:
        members["cls"] = str(picture.row["label"]).encode()
    return members
