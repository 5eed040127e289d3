"""Rows of a finished run beside the images they came from: read back from the parts, not from memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.errors import Reject
from pipeline.images import Draw, ImageConfig, find_image, prepare
from pipeline.model import Tokenizer, denormalise
from pipeline.qa.statistics import psnr
from pipeline.shards.manifest import Shard
from pipeline.shards.tar import TarReader
from pipeline.storage import Storage
from pipeline.tokens.reader import read_rows

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Sampled:
    """One row, decoded.

    Attributes:
        key: of the sample.
        original, reconstruction: uint8 [H, W, 3].
    """

    key: str
    original: Pixels
    reconstruction: Pixels

    @property
    def psnr(self) -> float:
        """Peak signal-to-noise ratio of the reconstruction (dB, peak 255)."""
        return psnr(self.original, self.reconstruction)


def read_back(
    storage: Storage,
    shard: Shard,
    part_url: str,
    model: Tokenizer,
    image: ImageConfig,
    rows: Sequence[int],
    seed: int = 0,
) -> list[Sampled]:
    """Decode some rows of one part, and prepare the same views of their source images again.

    Args:
        shard: the source of the part.
        part_url: the part.
        model: that made the tokens.
        image: the recipe that made the pixels.
        rows: which rows of the part; numbers beyond its end are left out.
        seed: of the run.
    """
    table = read_rows(storage, part_url, ["key", "sample_index", "view", "tokens", "grid_height", "grid_width"])
    chosen = [table.slice(row, 1).to_pylist()[0] for row in rows if row < table.num_rows]
    wanted = {(row["sample_index"], row["view"]): row for row in chosen}
    originals: dict[tuple[int, int], Pixels] = {}
    blob = shard.blob()
    with storage.stream(blob) as stream:
        for sample in TarReader(stream, url=shard.url, size=blob.size):
            if not any(index == sample.index for index, _ in wanted):
                continue
            data = find_image(sample.members)
            prepared = data if isinstance(data, Reject) else prepare(data, image, Draw(seed, sample.key))
            if not isinstance(prepared, Reject):
                originals.update({(sample.index, view.index): view.pixels for view in prepared.views})
    return [
        Sampled(row["key"], originals[place], _decode(model, row))
        for place, row in wanted.items()
        if place in originals
    ]


def _decode(model: Tokenizer, row: dict[str, Any]) -> Pixels:
    grid = np.array(row["tokens"], np.int64).reshape(1, row["grid_height"], row["grid_width"])
    pixels: Pixels = denormalise(model.decode_indices(torch.from_numpy(grid)))[0].numpy()
    return pixels
