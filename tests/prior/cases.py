"""Tokens with something to learn, and priors so small that a training takes a second or two."""

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.model import VQModel, weights_hash
from pipeline.prior import PriorConfig
from pipeline.tokens.schema import TokenSpec
from tests.support.token_runs import make_run

CODES = 64  # as the tiny model has
SPEC = TokenSpec(CODES, 4, 4)
VALUES = 12  # of the codes are used


def plain_tokens(shard: int, sample: int, view: int, spec: TokenSpec) -> np.ndarray:
    """Tokens [h, w] that are all the same: only the first one seen is news, and every place has all values."""
    value = np.random.default_rng([shard, sample, view]).integers(VALUES)
    return np.full((spec.grid_height, spec.grid_width), value)


def labelled_tokens(shard: int, sample: int, view: int, spec: TokenSpec) -> np.ndarray:
    """Tokens [h, w] that are noise but for the half of the values that they are drawn from: `sample % 5` below 2."""
    noise = np.random.default_rng([shard, sample, view]).integers(0, 4, (spec.grid_height, spec.grid_width))
    return noise + 4 * (sample % 5 < 2)


def prior_run(folder: Path, model: Path | None = None, samples: tuple[int, ...] = (90, 60), **made: Any) -> str:
    """A finished run of rows to learn, with the hash of a model's weights."""
    weights = {"model": str(model), "weights": weights_hash(VQModel.from_pretrained(model))} if model else {}
    return make_run(folder, samples, **{"spec": SPEC, "tokens": plain_tokens, "group": 16, **weights, **made})


def tiny_prior(**changes: Any) -> PriorConfig:
    """24 steps with a report every 4 and a checkpoint every 8."""
    shape = {"dim": 32, "layers": 2, "heads": 2, "pictures": 3, "rounds": 4, "device": "cpu"}
    pace = {"steps": 24, "batch_size": 32, "report_interval": 4, "checkpoint_interval": 8, "learning_rate": 1e-2}
    return PriorConfig(**{**shape, **pace, "warmup_steps": 5, "weight_decay": 0.0, **changes})


class Notes:
    """A watcher that keeps what it is told, and stops the training once `stop_after` steps are done."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self.began_at: list[int] = []
        self.steps: list[int] = []
        self.reports: list[Any] = []

    def began(self, step: int) -> None:
        self.began_at.append(step)

    def stepped(self, step: int) -> None:
        self.steps.append(step)

    def reported(self, report: Any) -> None:
        self.reports.append(report)

    def stopping(self) -> bool:
        return self.stop_after is not None and bool(self.steps) and self.steps[-1] >= self.stop_after
