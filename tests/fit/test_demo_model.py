"""What the README says of the model that ships: made by `tokenmill fit` as it stands there, and as good."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.fit import FitConfig, ImageSource
from pipeline.fit.held_out import measure
from pipeline.model import VQModel
from tests.qa.parts import ASSETS, DEMO_MODEL
from tests.support.commands import ROOT

SIDE = 256  # pixels
README = (ROOT / "README.md").read_text()
LOG = list(csv.DictReader((DEMO_MODEL / "log.csv").read_text().splitlines()))


@pytest.fixture(scope="module")
def model() -> VQModel:
    return VQModel.from_pretrained(DEMO_MODEL)


def squares(folder: str) -> list[np.ndarray]:
    return list(ImageSource(folder=ASSETS / folder).squares(SIDE))


def test_photographs_not_trained_on_come_back(model: VQModel) -> None:
    each = [measure(model, [image])[0] for image in squares("held-out")]
    told = re.search(r"PSNR ([\d.]+) dB \(([\d.]+) to ([\d.]+)\)", README)
    assert told
    assert [np.mean(each), min(each), max(each)] == pytest.approx([float(told[n]) for n in (1, 2, 3)], abs=0.06)
    assert np.mean(each) >= 23


def test_every_code_is_used_on_the_photographs(model: VQModel) -> None:
    images = torch.from_numpy(np.stack(squares("photos")))
    used = torch.cat([model.encode_indices(some).unique() for some in images.split(2)]).unique()
    assert len(used) == model.codebook_size == 1024


def test_no_held_out_photograph_was_trained_on() -> None:
    photos, held_out = ({path.stem for path in (ASSETS / name).iterdir()} for name in ("photos", "held-out"))
    assert (len(photos), len(held_out), photos & held_out) == (22, 5, set())


def test_log_is_of_the_command_in_the_readme(model: VQModel) -> None:
    config = FitConfig()
    assert (
        "tokenmill fit --images jobs/assets/photos --output vq-f8-1024        # defaults: 3,000 steps, seed 0" in README
    )
    assert (config.steps, config.seed, config.model) == (3000, 0, model.config)
    assert [int(row["step"]) for row in LOG] == list(range(50, 3001, config.report_interval))
    losses = [float(row["loss"]) for row in LOG]
    assert np.mean(losses[-5:]) < np.mean(losses[10:15]) < losses[0]
    assert float(LOG[-1]["usage"]) >= 0.9


def test_size_on_disk() -> None:
    assert sum(path.stat().st_size for path in Path(DEMO_MODEL).iterdir()) < 8e6
