"""SSIM and PSNR against torchmetrics."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from pipeline.qa.metrics import ssim
from pipeline.qa.statistics import psnr
from tests.qa.parts import photo_crops


def pairs(noise: float, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    originals = photo_crops(3, max(shape))[:, : shape[0], : shape[1]].copy()
    noisy = originals + np.random.default_rng(1).normal(0, noise, originals.shape)
    return originals, np.clip(noisy, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("shape", [(64, 64), (33, 47), (11, 90)])
@pytest.mark.parametrize("noise", [0.0, 3.0, 40.0, 300.0])
def test_metrics_are_torchmetrics(noise: float, shape: tuple[int, int]) -> None:
    originals, noisy = pairs(noise, shape)
    x, y = (torch.from_numpy(images).permute(0, 3, 1, 2).double() for images in (originals, noisy))
    expected = structural_similarity_index_measure(y, x, data_range=255.0, reduction="none")
    assert ssim(originals, noisy) == pytest.approx(expected.tolist(), abs=1e-5)
    for one, other, first, second in zip(originals, noisy, x, y, strict=True):
        ratio = float(peak_signal_noise_ratio(second[None], first[None], data_range=255.0))
        assert psnr(one, other) == pytest.approx(min(100.0, ratio), abs=1e-4)


def test_ssim_at_its_ends() -> None:
    originals, _ = pairs(0, (32, 32))
    assert ssim(originals, originals) == pytest.approx([1, 1, 1])
    assert max(ssim(originals, 255 - originals)) < 0.5


@pytest.mark.parametrize("side", [1, 2, 8, 10])
def test_ssim_of_images_smaller_than_its_window(side: int) -> None:
    originals, noisy = pairs(9, (side, side))
    assert ssim(originals, originals) == pytest.approx([1, 1, 1])
    assert all(-1 <= value < 1 for value in ssim(originals, noisy))
