"""How images become batches for the device: which model, which precision, and the few batch shapes that are used."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Precision(StrEnum):
    """Arithmetic of the encoder. Distances to the codes are float32 in all of them."""

    EXACT = "exact"  # float32, TF32 off: the reference
    TF32 = "tf32"
    BF16 = "bf16"
    FP16 = "fp16"


class ValueRange(StrEnum):
    """The values that pixels have when they enter a model: 0 and 255 become its ends."""

    SIGNED = "-1..1"
    UNIT = "0..1"


class ModelConfig(BaseModel):
    """The VQ model of a run and how it is computed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field("", description="folder or URL with config.json and safetensors, or a hub id")
    subfolder: str | None = Field(None, description="folder inside `path` that holds the model")
    revision: str | None = Field(None, description="branch, tag or commit, for a hub id")
    value_range: ValueRange = Field(
        ValueRange.SIGNED,
        description="what the model was trained on: -1..1 (VQGAN, LlamaGen) or 0..1 (aMUSEd, open-muse)",
    )
    sha256: str | None = Field(None, description="expected hash of the weights; any other weights are refused")
    allow_torchscript: bool = Field(
        False, description="run the program in encoder.jit and decoder.jit of `path`: only if you trust who made it"
    )
    precision: Literal["auto"] | Precision = Field(
        "auto",
        description="exact, tf32, bf16 or fp16; auto takes the fastest that keeps min_agreement, on a CPU exact",
    )
    batch_size: Literal["auto"] | int = Field(
        "auto", description="images per device batch; auto grows until throughput flattens or memory is short"
    )
    min_agreement: float = Field(
        0.99, ge=0, le=1, description="a precision is refused if fewer of its tokens equal those of `exact` (fraction)"
    )
    compile: bool = Field(False, description="torch.compile the encoder: minutes at start, pays on long GPU runs")
    graphs: bool = Field(True, description="replay CUDA graphs on a GPU, instead of launching kernel by kernel")

    @field_validator("batch_size")
    @classmethod
    def _positive(cls, size: int | str) -> int | str:
        if isinstance(size, int) and size < 1:
            raise ValueError(f"model.batch_size must be at least 1 or auto, got {size}")
        return size

    @property
    def fixed_precision(self) -> Precision | None:
        """The precision that the user chose, None for auto."""
        return None if self.precision == "auto" else self.precision


@dataclass(frozen=True, slots=True)
class Trial:
    """One precision, tried on real images at the start.

    Attributes:
        precision: what was tried.
        agreement: fraction of the tokens that equal those of `exact`.
        rate: images/s of the model alone.
        overflowed: images that left the precision's range, and were encoded again in `exact`.
    """

    precision: Precision
    agreement: float
    rate: float
    overflowed: int = 0

    def __str__(self) -> str:
        out = f", {self.overflowed} images out of range" if self.overflowed else ""
        return f"{self.precision} keeps {self.agreement:.2%} at {self.rate:,.1f} images/s{out}"


def candidates(device: str) -> tuple[Precision, ...]:
    """The precisions among which `auto` chooses on a kind of device (`cpu` or `cuda`).

    On a CPU float16 is slower than float32, bfloat16 keeps too few of the tokens (measured), and TF32 does not exist.
    """
    return tuple(Precision) if device == "cuda" else (Precision.EXACT,)


def choose(trials: Iterable[Trial], min_agreement: float) -> Trial:
    """The fastest of the precisions that keep the tokens and stay in range; `exact` always does.

    Args:
        trials: `exact` among them.
        min_agreement: the least fraction of tokens that must equal those of `exact`.
    """
    fit = [
        trial
        for trial in trials
        if trial.precision is Precision.EXACT or (trial.agreement >= min_agreement and not trial.overflowed)
    ]
    return max(fit, key=lambda trial: trial.rate)


def batch_shapes(batch_size: int) -> tuple[int, ...]:
    """The few batch sizes that a device ever sees, ascending: the full one, and quarters of it for tails.

    The last bits of a result depend on the batch's size (not on its other members), so equal shards give equal tokens
    only because their batches are cut and padded the same way every time.
    """
    shapes = {batch_size}
    while batch_size > 4:
        batch_size = -(-batch_size // 4)
        shapes.add(batch_size)
    return tuple(sorted(shapes))


def padded_size(count: int, shapes: tuple[int, ...]) -> int:
    """The smallest of the shapes that holds `count` images."""
    for shape in shapes:
        if shape >= count:
            return shape
    raise ValueError(f"a batch must be at most {shapes[-1]} images, got {count}")
