"""Which views of a shard are looked at: some by lot, and those that the codebook finds most surprising.

The lot is a hash of the key, so every run draws the same ones. A view is unusual if its tokens are improbable under the
histogram of the shard so far. Their pixels are all that is kept.
"""

import hashlib
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.tokens.schema import Row

Pixels = npt.NDArray[np.uint8]
Tokens = npt.NDArray[Any]  # of any integer dtype


class SampleKind(StrEnum):
    """Why a view was chosen."""

    RANDOM = "random"
    UNUSUAL = "unusual"


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """A view that is to be looked at.

    Attributes:
        kind: why.
        key, sample_index, view: which one.
        pixels: uint8 [size, size, 3], as the model saw them.
    """

    kind: SampleKind
    key: str
    sample_index: int
    view: int
    pixels: Pixels


class Sampler:
    """Chooses as the batches of one shard go by.

    Args:
        count: views by lot, at least 1; and half as many unusual ones.
        codes: size of the codebook.
    """

    def __init__(self, count: int, codes: int) -> None:
        self._count, self._unusual_count = count, (count + 1) // 2
        self._histogram = np.ones(codes)  # one of each, so that no code is impossible
        self._drawn: list[tuple[bytes, Row, Pixels]] = []
        self._unusual: list[tuple[Row, Pixels, Tokens]] = []

    def add(self, rows: Sequence[Row], images: Pixels, tokens: Tokens) -> None:
        """Look at one batch.

        Args:
            rows: n of them.
            images: [n, size, size, 3]; those that are kept are copied.
            tokens: [n, h, w], all of them in [0, codes).
        """
        self._draw(rows, images)
        self._compare(rows, images, tokens.reshape(len(rows), -1))

    def chosen(self) -> list[Chosen]:
        """The choice so far: by lot, then the unusual ones that the lot did not hit, most unusual first."""
        drawn = [_chosen(SampleKind.RANDOM, row, pixels) for _, row, pixels in self._drawn]
        places = {(view.sample_index, view.view) for view in drawn}
        unusual = [_chosen(SampleKind.UNUSUAL, row, pixels) for row, pixels, _ in self._unusual]
        return drawn + [view for view in unusual if (view.sample_index, view.view) not in places]

    def _draw(self, rows: Sequence[Row], images: Pixels) -> None:
        for row, image in zip(rows, images, strict=True):
            lot = hashlib.sha256(f"{row.key}\0{row.view}".encode()).digest()
            if len(self._drawn) < self._count or lot < self._drawn[-1][0]:
                insort(self._drawn, (lot, row, image.copy()), key=lambda drawn: drawn[0])
                del self._drawn[self._count :]

    def _compare(self, rows: Sequence[Row], images: Pixels, grids: Tokens) -> None:
        """Rank the batch and what was kept before by today's histogram; the first of equals stays."""
        self._histogram += np.bincount(grids.reshape(-1), minlength=len(self._histogram))
        surprisal = -np.log2(self._histogram / self._histogram.sum())
        kept = len(self._unusual)
        scores = [surprisal[grid].mean() for _, _, grid in self._unusual] + [*surprisal[grids].mean(axis=1)]
        best = np.argsort(np.negative(scores), kind="stable")[: self._unusual_count]
        self._unusual = [
            self._unusual[i] if i < kept else (rows[i - kept], images[i - kept].copy(), grids[i - kept].copy())
            for i in best
        ]


def _chosen(kind: SampleKind, row: Row, pixels: Pixels) -> Chosen:
    return Chosen(kind, row.key, row.sample_index, row.view, pixels)
