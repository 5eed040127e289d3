"""Training: it learns, it keeps its codes in use, and it can be repeated."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from pydantic import ValidationError

from pipeline.errors import UsageError
from pipeline.fit import CropSource, FitConfig, FitReport, OnlineCodebook, fit, learning_rate
from pipeline.model import VQModel, VQModelConfig, weights_hash

TINY = VQModelConfig(
    block_out_channels=(8, 16),
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    norm_num_groups=2,
    latent_channels=4,
    num_vq_embeddings=32,
    mid_block_add_attention=False,
)


def tiny_config(**changes: Any) -> FitConfig:
    defaults = {"model": TINY, "steps": 60, "batch_size": 8, "crop": 16, "final_crop": 32, "report_interval": 10}
    schedule = {"learning_rate": 6e-3, "warmup_steps": 5, "continuous_steps": 20, "restart_interval": 5}
    return FitConfig(**{**defaults, **schedule, "min_short_side": 32, "max_short_side": 48, **changes})


def photographs(count: int = 4) -> list[npt.NDArray[np.uint8]]:
    """Pictures [64, 80, 3] of soft blobs of colour."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:64, 0:80]
    pictures = []
    for _ in range(count):
        picture = np.full((64, 80, 3), rng.uniform(40, 200, 3))
        for _ in range(12):
            distance = np.hypot(y - rng.uniform(0, 64), x - rng.uniform(0, 80))
            picture += np.exp(-((distance / rng.uniform(4, 16)) ** 2))[..., None] * rng.uniform(-120, 120, 3)
        pictures.append(picture.clip(0, 255).astype(np.uint8))
    return pictures


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads only cost time on models of this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained() -> tuple[VQModel, list[FitReport]]:
    reports: list[FitReport] = []
    with torch.random.fork_rng():
        model = fit(photographs(), tiny_config(), lambda report, _: reports.append(report))
    return model, reports


def test_error_falls_and_codes_stay_in_use(trained: tuple[VQModel, list[FitReport]]) -> None:
    model, reports = trained
    assert [report.step for report in reports] == [10, 20, 30, 40, 50, 60]
    assert reports[-1].psnr > reports[0].psnr + 2
    assert reports[-1].loss < reports[0].loss
    assert [report.usage > 0 for report in reports] == [False, False, True, True, True, True]
    assert reports[-1].usage > 0.8
    assert 12 < reports[-1].perplexity <= 32
    assert not model.training


def test_trained_model_reconstructs_a_photograph(trained: tuple[VQModel, list[FitReport]]) -> None:
    model, _ = trained
    images = torch.from_numpy(np.stack(photographs()))
    decoded = model.decode_indices(model.encode_indices(images)).permute(0, 2, 3, 1)
    error = (decoded * 127.5 + 127.5 - images).square().mean().item()
    spread = images.float().var().item()
    assert error < 0.5 * spread


@pytest.mark.parametrize(("seed", "same"), [(0, True), (1, False)])
def test_seed_decides_the_weights(seed: int, same: bool) -> None:
    torch.manual_seed(seed + 100)  # the global generator must not matter
    short = {"steps": 12, "continuous_steps": 4}
    first = fit(photographs(), tiny_config(**short))
    again = fit(photographs(), tiny_config(**short, seed=seed))
    assert (weights_hash(first) == weights_hash(again)) == same


def test_global_generator_is_left_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    fit(photographs(1), tiny_config(steps=2, continuous_steps=1))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(("side", "count"), [(16, 8), (32, 2)])
def test_crops_keep_the_number_of_pixels(side: int, count: int) -> None:
    batch = CropSource(photographs(), tiny_config()).batch(side)
    assert batch.shape == (count, 3, side, side)
    assert -1 <= batch.min() < batch.max() <= 1


def test_pool_is_bounded_and_small_images_are_left_out() -> None:
    black, white = np.zeros((40, 40, 3), np.uint8), np.full((40, 40, 3), 255, np.uint8)
    small = np.full((31, 90, 3), 128, np.uint8)
    crops = CropSource([small, black, white], tiny_config(pool_images=1, color_jitter=0)).batch(16)
    assert crops.unique().tolist() == [-1.0]
    with pytest.raises(UsageError, match="short side of at least 32 pixels, got none"):
        CropSource([small], tiny_config())


def test_dead_codes_restart_where_the_error_is() -> None:
    codebook = OnlineCodebook(model := VQModel(TINY), config := tiny_config())
    vectors = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
    codebook.initialise(vectors)
    used = model.quantize.embedding.weight[0].clone()
    crowd = used.expand(64, 4)
    for _ in range(math.ceil(math.log(0.05) / math.log(config.codebook_decay))):
        codebook.update(crowd, torch.zeros(64, dtype=torch.int64))
    outliers = torch.cat([crowd[:32], used + torch.eye(4).repeat(8, 1) * 9])
    codebook.restart_dead(outliers, crowd)
    codes = model.quantize.embedding.weight
    assert torch.allclose(codes[0], used, atol=1e-4)
    assert all((outliers[32:] == code).all(dim=1).any() for code in codes[1:])


def test_learning_rate_schedule() -> None:
    config = tiny_config(steps=100, warmup_steps=10, learning_rate=1.0)
    rates = [learning_rate(step, config) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 11)
    assert rates.index(max(rates)) == 10
    assert rates[-1] < 1e-3
    assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": 17}, r"crop must be a multiple of .* \(2\) .* got 17"),
        ({"final_crop": 64}, r"final_crop must .* at most min_short_side \(32\), got 64"),
        ({"max_short_side": 16}, r"max_short_side must be at least min_short_side \(32\), got 16"),
        ({"continuous_steps": 60}, r"continuous_steps must be below steps \(60\), got 60"),
        ({"learning_rat": 1}, "learning_rat"),
    ],
)
def test_invalid_configuration(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        tiny_config(**changes)
