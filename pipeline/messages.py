"""What actors tell the driver. Plain values, so that the driver needs neither torch nor a model to read them."""

from dataclasses import dataclass

from pipeline.commit import Outcome
from pipeline.encoding import Precision
from pipeline.meter import Reading
from pipeline.tokens.schema import Counts, TokenSpec


@dataclass(frozen=True, slots=True)
class Identity:
    """What an actor loaded: the same on every actor, or the run must not start.

    Attributes:
        weights: hash of the model's tensors.
        model: the model's configuration.
        spec: codebook size and grid of the tokens.
        precision: arithmetic of the encoder.
    """

    weights: str
    model: dict[str, object]
    spec: TokenSpec
    precision: Precision


@dataclass(frozen=True, slots=True)
class Calibration:
    """What an actor measured at the start, on real images.

    Attributes:
        device: name of the device.
        batch_size: images per batch that the run uses.
        rates: images/s of the model alone on ready batches, by batch size.
        decode_rate: images/s of the decode pool alone.
        agreement: fraction of tokens equal to precision `exact`'s.
        images: how many real images were at hand.
        versions: of the libraries that compute.
    """

    device: str
    batch_size: int
    rates: dict[int, float]
    decode_rate: float
    agreement: float
    images: int
    versions: dict[str, str]

    @property
    def model_rate(self) -> float:
        """Images/s of the model alone at the chosen batch size."""
        return self.rates[self.batch_size]


@dataclass(frozen=True, slots=True)
class Pulse:
    """A sign of life.

    Attributes:
        reading: what the actor has done so far.
        moved: (shard id, attempt, count that grows while it moves) of every attempt.
    """

    reading: Reading
    moved: list[tuple[str, int, int]]


@dataclass(frozen=True, slots=True)
class ShardReport:
    """What became of a shard that is done.

    Attributes:
        counts: its accounts.
        reasons: rejects by reason.
        outcome: whether this attempt or another one published the part.
        part_bytes: size of the part.
    """

    counts: Counts
    reasons: dict[str, int]
    outcome: Outcome
    part_bytes: int
