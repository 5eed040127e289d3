"""The rules of the training, one by one, against their formulas (1711.00937)."""

import math
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.fit import FitReport, OnlineCodebook, Training, fit_folder
from pipeline.fit.team import Team
from pipeline.fit.trainer import Trainer
from pipeline.model import VQModel
from tests.fit.cases import QUICK, TINY, Notes, photographs, quick_task, tiny_config


def first_report(**changes: object) -> FitReport:
    training = Training(photographs(), tiny_config(**{**QUICK, "report_interval": 1, **changes}))
    report = training.advance()
    assert report is not None
    return report


@pytest.mark.parametrize(("l1", "l2"), [(1.0, 0.0), (0.0, 1.0), (2.0, 3.0)])
def test_loss_is_the_weighted_sum_of_its_terms(l1: float, l2: float) -> None:
    """Before quantization begins there are no others; the mean squared error is known from PSNR."""
    absolute, squared = first_report(l1_weight=1.0, l2_weight=0.0).loss, first_report(l1_weight=0.0, l2_weight=1.0)
    assert squared.psnr == pytest.approx(10 * math.log10(4 / squared.loss), abs=1e-4)
    assert first_report(l1_weight=l1, l2_weight=l2).loss == pytest.approx(l1 * absolute + l2 * squared.loss, rel=1e-5)


@pytest.mark.parametrize("commitment", [0.0, 1.0])
def test_encoder_learns_straight_through_the_quantizer(commitment: float) -> None:
    """Its gradient is that of the loss by the decoder's input, copied to the latents; and the commitment's."""
    config = tiny_config(**{**QUICK, "continuous_steps": 1, "commitment": commitment, "gradient_clip": 1e9})
    trainer = Trainer(VQModel(TINY), config, Team())
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    trainer.codebook.initialise(torch.randn(64, 4, generator=torch.Generator().manual_seed(1)))
    codes = trainer.model.quantize.embedding.weight.detach().clone()
    quantized, loss = trainer._quantize(2, latents)
    upstream = torch.randn(quantized.shape, generator=torch.Generator().manual_seed(2))
    ((quantized * upstream).sum() + loss).backward()
    pull = 2 * commitment * (latents - quantized).detach() / latents.numel()
    assert torch.allclose(latents.grad, upstream + pull, atol=1e-6)
    vectors = quantized.detach().permute(0, 2, 3, 1).reshape(-1, 4)
    assert torch.cdist(vectors, codes).min(dim=1).values.max() < 1e-3, "the decoder sees codes, not latents"


def codebook(**changes: object) -> tuple[OnlineCodebook, Tensor]:
    model = VQModel(TINY)
    return OnlineCodebook(model, tiny_config(**changes)), model.quantize.embedding.weight


def test_codes_are_moving_averages_of_their_vectors() -> None:
    """Equations 6 to 8 of appendix A.1, with counts relative to an equal share."""
    book, codes = codebook(codebook_decay=0.9)
    book.initialise(torch.randn(64, 4, generator=torch.Generator().manual_seed(0)))
    counts, sums = torch.ones(32), codes.detach().clone()
    for seed in range(5):
        vectors = torch.randn(96, 4, generator=torch.Generator().manual_seed(seed))
        indices = torch.cdist(vectors, codes.detach()).argmin(dim=1)
        assert torch.equal(book.update(vectors, indices), torch.bincount(indices, minlength=32).float())
        for code in range(32):
            mine = vectors[indices == code]
            counts[code] = 0.9 * counts[code] + 0.1 * len(mine) / 3  # 96 vectors, 32 codes
            sums[code] = 0.9 * sums[code] + 0.1 * mine.sum(dim=0) / 3
    assert torch.allclose(codes, sums / counts[:, None], atol=1e-5)


def test_codebook_starts_as_k_means() -> None:
    """Every code is the mean of the vectors that it attracts, or nearly, after ten rounds; and near all of them."""
    generator = torch.Generator().manual_seed(3)
    centres = 10 * torch.randn(16, 4, generator=generator)
    vectors = (centres[:, None] + 0.1 * torch.randn(16, 40, 4, generator=generator)).reshape(-1, 4)
    book, codes = codebook()
    book.initialise(vectors)
    distances, nearest = torch.cdist(vectors, codes).min(dim=1)
    means = torch.stack([vectors[nearest == code].mean(dim=0) for code in nearest.unique()])
    assert torch.allclose(codes[nearest.unique()], means, atol=0.05)
    picked = vectors[torch.randperm(len(vectors), generator=generator)[:32]]
    assert distances.square().mean() < 0.7 * torch.cdist(vectors, picked).min(dim=1).values.square().mean()


def test_trained_model_gives_the_same_images_in_diffusers(photos: Path, tmp_path: Path) -> None:
    task = quick_task(tmp_path / "model", photos, steps=9)
    assert fit_folder(task, Notes())
    ours, theirs = VQModel.from_pretrained(task.folder), diffusers.VQModel.from_pretrained(task.folder).eval()
    images = torch.from_numpy(np.stack(photographs())[:, :32, :32].transpose(0, 3, 1, 2) / 127.5 - 1).float()
    with torch.no_grad():
        assert torch.allclose(theirs(images).sample, ours(images).sample, atol=1e-4)
