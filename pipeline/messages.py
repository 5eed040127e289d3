"""What actors tell the driver. Plain values, so that the driver needs neither torch nor a model to read them."""

from dataclasses import dataclass, field

from pipeline.commit import Outcome
from pipeline.encoding import Precision, Trial
from pipeline.meter import Reading
from pipeline.qa.evidence import QaReport
from pipeline.shards.manifest import Shard
from pipeline.tokens.schema import Counts, TokenSpec

UNFIT = "unfit"  # reason of a failure after which the actor is of no more use


@dataclass(frozen=True, slots=True)
class Identity:
    """What an actor loaded: the same on every actor, or the run must not start.

    Attributes:
        weights: hash of the model's tensors.
        model: the model's configuration.
        spec: codebook size and grid of the tokens.
        resampler: what resamples the images (`pipeline.images.resampler`).
        select: which samples are wanted, lists by their content; empty for all.
        downsample: pixels per token along one side.
    """

    weights: str
    model: dict[str, object]
    spec: TokenSpec
    resampler: str
    select: dict[str, object] = field(default_factory=dict)
    downsample: int = 1

    def tokens_per_view(self, pixels: int) -> int:
        """Tokens of a view; where grids vary, of one with so many pixels."""
        return self.spec.tokens_per_view or pixels // self.downsample**2


@dataclass(frozen=True, slots=True)
class Calibration:
    """What an actor measured at the start, on real images.

    Attributes:
        device: name of the device.
        batch_size: images per batch that the run uses.
        rates: images/s of the model alone on ready batches, by batch size.
        decode_rate: images/s of the decode pool alone; each view counts as one.
        images: how many real images were at hand.
        versions: of the libraries that compute.
        trials: the precisions that were tried, the chosen one among them.
        precision: the chosen one.
        decode_agreement: fraction of tokens equal to those of `image.decode: exact`.
        bytes_per_sample: of the first shards; 0 if they gave no sample.
    """

    device: str
    batch_size: int
    rates: dict[int, float]
    decode_rate: float
    images: int
    versions: dict[str, str]
    trials: tuple[Trial, ...]
    precision: Precision
    decode_agreement: float = 1.0
    bytes_per_sample: float = 0.0

    @property
    def chosen(self) -> Trial:
        """What was found about the chosen precision."""
        return next(trial for trial in self.trials if trial.precision is self.precision)

    @property
    def model_rate(self) -> float:
        """Images/s of the model alone at the chosen batch size."""
        return self.rates[self.batch_size]

    @property
    def together(self) -> float:
        """Images/s that decode and model allow together: the slower one; on a CPU, where they share the cores, the rate
        at which the summed time per image fits."""
        model, decode = self.model_rate, self.decode_rate
        return 1 / (1 / model + 1 / decode) if self.device == "cpu" else min(model, decode)


@dataclass(frozen=True, slots=True)
class Task:
    """One attempt at one shard, as an actor is told.

    Attributes:
        shard: what to tokenize.
        attempt: its number, for `pulse` and `cancel`.
        careful: decode every sample in a child process, because this shard took processes with it.
        replace: put the part in the place of the one that is there.
    """

    shard: Shard
    attempt: int
    careful: bool = False
    replace: bool = False


@dataclass(frozen=True, slots=True)
class Pulse:
    """A sign of life.

    Attributes:
        reading: what the actor has done so far.
        moved: (shard id, attempt, count that grows while it moves) of every attempt.
        queues: what waits before a stage now: samples before `decode`, views before `encode`.
    """

    reading: Reading
    moved: list[tuple[str, int, int]]
    queues: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Supply:
    """How well a shard's device was supplied with pixels.

    Attributes:
        remote: by a decode actor.
        rows: that were made.
        waited, lasted: seconds in which the shard waited for pixels, of those from its first byte to its last row.
    """

    remote: bool
    rows: int
    waited: float
    lasted: float


@dataclass(frozen=True, slots=True)
class ShardReport:
    """What became of a shard that is done.

    Attributes:
        counts: its accounts.
        outcome: whether this attempt or another one published the part.
        filled: the columns of `columns` (caption, label, meta, more) that have a value in some row.
        qa: what a look at the part found; None if QA is off.
        supply: how pixels came.
        reading: what the actor has done so far, this shard included: the next pulse may come too late to be heard.
    """

    counts: Counts
    outcome: Outcome
    filled: frozenset[str] = frozenset()
    qa: QaReport | None = None
    supply: Supply | None = None
    reading: Reading = field(default_factory=Reading)
