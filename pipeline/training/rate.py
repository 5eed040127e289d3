"""The learning rate over the steps of a training."""

import math
from typing import Protocol


class Schedule(Protocol):
    """What the learning rate depends on."""

    @property
    def learning_rate(self) -> float:
        """The peak."""
        ...

    @property
    def warmup_steps(self) -> int:
        """Of the linear warm-up."""
        ...

    @property
    def steps(self) -> int:
        """Of the whole training."""
        ...


def learning_rate(step: int, schedule: Schedule) -> float:
    """Linear warm-up, then a cosine to zero."""
    warm = min(1.0, (step + 1) / (schedule.warmup_steps + 1))
    return schedule.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / schedule.steps))
