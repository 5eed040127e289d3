"""A model, images and settings so small that a training takes a second."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.fit import FitConfig, FitReport, FitTask, ImageSource
from pipeline.model import VQModelConfig

TINY = VQModelConfig(
    block_out_channels=(8, 16),
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    norm_num_groups=2,
    latent_channels=4,
    num_vq_embeddings=32,
    mid_block_add_attention=False,
)
QUICK = {"steps": 24, "continuous_steps": 8, "report_interval": 5, "reports_per_checkpoint": 2, "held_out_side": 32}
RESTARTS = {"codebook_decay": 0.3, "restart_interval": 4}  # codes die quickly, so random numbers are used


def tiny_config(**changes: Any) -> FitConfig:
    defaults = {"model": TINY, "steps": 60, "batch_size": 8, "crop": 16, "final_crop": 32, "report_interval": 10}
    schedule = {"learning_rate": 6e-3, "warmup_steps": 5, "continuous_steps": 20, "restart_interval": 5}
    fixed = {"min_short_side": 32, "max_short_side": 48, "device": "cpu"}
    return FitConfig(**{**defaults, **schedule, **fixed, **changes})


def photographs(count: int = 4, seed: int = 0) -> list[npt.NDArray[np.uint8]]:
    """Pictures [64, 80, 3] of soft blobs of colour."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:64, 0:80]
    pictures = []
    for _ in range(count):
        picture = np.full((64, 80, 3), rng.uniform(40, 200, 3))
        for _ in range(12):
            distance = np.hypot(y - rng.uniform(0, 64), x - rng.uniform(0, 80))
            picture += np.exp(-((distance / rng.uniform(4, 16)) ** 2))[..., None] * rng.uniform(-120, 120, 3)
        pictures.append(picture.clip(0, 255).astype(np.uint8))
    return pictures


def save_photographs(folder: Path, count: int = 4, seed: int = 0) -> Path:
    folder.mkdir()
    for number, picture in enumerate(photographs(count, seed)):
        Image.fromarray(picture).save(folder / f"{number}.png")
    return folder


def quick_task(folder: Path, photos: Path, *, held_out: Path | None = None, **changes: Any) -> FitTask:
    """A training of 24 steps with a report every 5 and a checkpoint every 10."""
    held = ImageSource(folder=held_out) if held_out else None
    return FitTask(
        folder, ImageSource(folder=photos), tiny_config(**{**QUICK, **RESTARTS, **changes}), held, half=False
    )


class Notes:
    """A watcher that keeps what it is told, and stops the training once `stop_after` steps are done."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self.began_at: list[int] = []
        self.steps = [0]
        self.reports: list[FitReport] = []

    def began(self, step: int) -> None:
        self.began_at.append(step)

    def stepped(self, step: int) -> None:
        self.steps.append(step)

    def reported(self, report: FitReport) -> None:
        self.reports.append(report)

    def stopping(self) -> bool:
        return self.stop_after is not None and self.steps[-1] >= self.stop_after


def team_config(**changes: Any) -> FitConfig:
    """A training with dead codes to restart, so that a team has to agree on them."""
    settings = {"steps": 16, "continuous_steps": 6, "report_interval": 4, "learning_rate": 2e-3, "held_out_side": 32}
    return tiny_config(**{**settings, **RESTARTS, **changes})
