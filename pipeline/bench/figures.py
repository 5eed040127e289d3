"""What a benchmark found, as one document."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.bench.measure import Spread


@dataclass(frozen=True, slots=True)
class StageFigures:
    """A stage alone.

    Attributes:
        rate: images/s with all of its lanes at work.
        cpu_ms: CPU time per image (milliseconds).
        share: of the cores' time when all stages run (fraction).
        native: in the stage's own unit.
        unit: of `native`: MB/s of one stream or of all, images/s of all cores, tokens/s of one thread.
    """

    rate: Spread
    cpu_ms: Spread
    share: float
    native: Spread
    unit: str


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """The model alone at one precision.

    Attributes:
        precision: of the encoder.
        rates: images/s by batch size.
        agreement: fraction of tokens that equal those of precision `exact`.
    """

    precision: str
    rates: Mapping[int, float]
    agreement: float


@dataclass(frozen=True, slots=True)
class Bench:
    """What a machine can do with a job.

    Attributes:
        device: its name.
        cores: that this process may use.
        free_cores: that it got while it was measured.
        image_size: side of the images (pixels).
        precision, decode, batch_size: of the run.
        shard: that the stages were measured on.
        bytes_per_image: of that shard.
        rows: of the part that was written and inspected.
        stages: by name, each alone.
        decode_modes: images/s of one core by decode mode.
        models: each precision that the device has.
        end_to_end: images/s of all stages together, steady.
        end_to_end_cpu_ms: CPU time per image (milliseconds).
        bound: images/s that the stages allow together.
        fraction: of the bound that was reached.
        limit: what gives out at the bound: cores, device or store.
        heaviest: the stage that takes most of the cores' time.
        cores_per_device: that keep the device supplied; None where the CPU is the device.
        device_busy: share of the time in which the device was at work.
        peak_memory: most that was resident (bytes).
        device_memory: most that was allocated on the device (bytes); None where it is the CPU.
    """

    device: str
    cores: int
    free_cores: Spread
    image_size: int
    precision: str
    decode: str
    batch_size: int
    shard: str
    bytes_per_image: float
    rows: int
    stages: Mapping[str, StageFigures]
    decode_modes: Mapping[str, float]
    models: Sequence[ModelFigures]
    end_to_end: Spread
    end_to_end_cpu_ms: Spread
    bound: Spread
    fraction: Spread
    limit: str
    heaviest: str
    cores_per_device: float | None
    device_busy: Spread
    peak_memory: int
    device_memory: int | None
