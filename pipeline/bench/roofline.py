"""The roofline of a run: from what each stage takes alone to the rate that none of them can exceed together."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Stage(StrEnum):
    """What is measured alone."""

    FETCH = "fetch"  # bytes out of the store
    TAR = "tar"  # bytes to samples
    DECODE = "decode"  # samples to pixels
    ENCODE = "encode"  # pixels to tokens
    WRITE = "write"  # rows to Parquet, checked
    INSPECT = "inspect"  # QA


@dataclass(frozen=True, slots=True)
class Cost:
    """What a stage takes, measured alone.

    Attributes:
        rate: images/s with all of its lanes at work.
        cpu: CPU seconds per image.
    """

    rate: float
    cpu: float


@dataclass(frozen=True, slots=True)
class Roofline:
    """The ceilings of one actor.

    Attributes:
        ceilings: images/s by what gives out at it: `cores`, which all stages share; `device`, where it is not the CPU;
            `store`.
        cpu: CPU seconds per image of each stage.
        cores_per_device: cores that keep one device supplied; None where the CPU is the device.
    """

    ceilings: Mapping[str, float]
    cpu: Mapping[Stage, float]
    cores_per_device: float | None

    @property
    def bound(self) -> float:
        """Images/s that no run can exceed: the lowest ceiling."""
        return min(self.ceilings.values())

    @property
    def limit(self) -> str:
        """What gives out first."""
        return min(self.ceilings, key=lambda name: self.ceilings[name])

    @property
    def heaviest(self) -> Stage:
        """The stage that takes most of the cores' time."""
        return max(self.cpu, key=lambda stage: self.cpu[stage])

    def share(self, stage: Stage) -> float:
        """The fraction of the cores' time that a stage takes."""
        return self.cpu[stage] / sum(self.cpu.values())


def roofline(costs: Mapping[Stage, Cost], cores: float, *, on_cpu: bool) -> Roofline:
    """Put the stages together.

    Args:
        costs: of every stage that takes time, `fetch` and `encode` among them.
        cores: that were to be had while the stages were measured.
        on_cpu: the model runs on the cores that the other stages need too.
    """
    cpu = {stage: cost.cpu for stage, cost in costs.items()}
    ceilings = {"cores": cores / sum(cpu.values()), "store": costs[Stage.FETCH].rate}
    if on_cpu:
        return Roofline(ceilings, cpu, None)
    ceilings["device"] = costs[Stage.ENCODE].rate
    return Roofline(ceilings, cpu, costs[Stage.ENCODE].rate * sum(cpu.values()))
