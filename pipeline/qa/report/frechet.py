"""rFID: how far the reconstructions' features lie from the originals', as two clouds (Heusel et al. 2017, 1706.08500).

The Fréchet distance of the Gaussians with the clouds' means and covariances:

    d^2 = |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))

Few images make it too large; and it is one number of a whole set of images, so the number of images is part of it.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from pipeline.errors import TokenmillError
from pipeline.qa.evidence import DAMAGE, evidence_url
from pipeline.qa.report.records import ShardRecord, weight_files
from pipeline.storage import Storage

ADVISED_IMAGES = 10_000  # what the authors advise at least
MAX_FEATURES = 4096  # damaged evidence must not ask for all memory
COLUMNS = ["original_features", "reconstruction_features"]
LOT = 64  # shards read before their features are summed up: products of few rows are slow
READ_THREADS = 16

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Rfid:
    """The Fréchet distance between the random samples and their reconstructions.

    Attributes:
        value: None if there are too few images to tell.
        images, shards: what it is from, each image counted alike; N is `images`.
        features: of an image.
        remark: what to bear in mind, or why there is no value.
    """

    value: float | None
    images: int
    shards: int
    features: int
    remark: str


class Moments:
    """Mean and covariance of features, summed up lot by lot.

    Args:
        width: features of an image.
    """

    def __init__(self, width: int) -> None:
        self.width, self.count = width, 0
        self._total: Floats = np.zeros(width)
        self._products: Floats = np.zeros((width, width))

    def add(self, features: Floats) -> None:
        """Count the features [n, width] of some images."""
        self.count += len(features)
        self._total += features.sum(axis=0)
        self._products += features.T @ features

    def mean(self) -> Floats:
        """[width]."""
        return self._total / self.count

    def covariance(self) -> Floats:
        """[width, width], unbiased; of at least two images."""
        return (self._products - np.outer(self._total, self.mean())) / (self.count - 1)


def frechet_distance(first: Moments, second: Moments) -> float:
    """The squared Fréchet distance of two Gaussians, as FID is told; 0 for equal ones.

    tr (S1 S2)^(1/2) is the sum of the roots of the eigenvalues of R S2 R, which is symmetric, with R = S1^(1/2).
    """
    one, two = first.covariance(), second.covariance()
    values, vectors = np.linalg.eigh(one)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    both = np.linalg.eigvalsh(root @ two @ root)
    between = first.mean() - second.mean()
    return max(0.0, float(between @ between + np.trace(one) + np.trace(two) - 2 * np.sqrt(both.clip(0)).sum()))


def read_rfid(storage: Storage, output: str, records: Sequence[ShardRecord]) -> Rfid | None:
    """rFID over the evidence of some shards; None if none has features.

    A second look at their files: memory holds the features of `LOT` shards, whatever the size of the run.

    Args:
        records: of the shards of `output` whose evidence counts.
    """
    files = weight_files(records).get("rfid", [])
    if not files:
        return None
    if len(files) > 1:
        return Rfid(None, 0, 0, 0, f"not computed: the features are of {len(files)} different networks")
    names = [record.id for record in records if "rfid" in record.report.weight_files]
    clouds: list[Moments] = []
    shards = 0
    for lot in _lots(storage, output, names):
        clouds = clouds or [Moments(lot[0].shape[2]) for _ in COLUMNS]
        fitting = [
            features for features in lot if features.shape[2] == clouds[0].width
        ]  # one network: others are damaged
        shards += len(fitting)
        for number, cloud in enumerate(clouds):
            cloud.add(np.concatenate([np.empty((0, cloud.width)), *(features[number] for features in fitting)]))
    return (
        _judged(clouds[0], clouds[1], shards) if clouds else Rfid(None, 0, 0, 0, "not computed: no shard has features")
    )


def _judged(originals: Moments, reconstructions: Moments, shards: int) -> Rfid:
    images, width = originals.count, originals.width
    if images <= width:
        remark = f"not computed: {width:,} features need more than {width:,} images (qa.samples_per_shard)"
        return Rfid(None, images, shards, width, remark)
    few = f"too high for want of images: {ADVISED_IMAGES:,} are advised" if images < ADVISED_IMAGES else ""
    return Rfid(frechet_distance(originals, reconstructions), images, shards, width, few)


def _lots(storage: Storage, output: str, names: Sequence[str]) -> Iterator[list[Floats]]:
    """Features [2, n, d] of originals and reconstructions, of some shards at a time, as far as they can be read."""

    def read(name: str) -> Floats | None:
        try:
            return _features(storage, evidence_url(output, name))
        except (
            TokenmillError,
            *DAMAGE,
        ):  # its numbers could be read: the images are fewer, and the page tells how many
            return None

    with ThreadPoolExecutor(READ_THREADS, thread_name_prefix="report") as pool:
        for start in range(0, len(names), LOT):
            lot = [found for found in pool.map(read, names[start : start + LOT]) if found is not None]
            if lot:
                yield lot


def _features(storage: Storage, url: str) -> Floats | None:
    """[2, n, d] of one evidence file; None if it has none.

    Raises:
        ValueError, OSError, ...: any of `DAMAGE`.
    """
    with storage.open_random(url) as file:
        table = pq.read_table(file, columns=COLUMNS).drop_null()
    features = np.array([table[name].to_pylist() for name in COLUMNS], float)  # refuses rows of several lengths
    if not features.size:
        return None
    if features.shape[2] > MAX_FEATURES or not np.isfinite(features).all():
        raise ValueError(f"{url}: features must be finite and at most {MAX_FEATURES}, got {features.shape[2]}")
    return features
