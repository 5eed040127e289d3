"""Training: it learns, it keeps its codes in use, and it can be repeated."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from pipeline.errors import UsageError
from pipeline.fit import CropSource, FitConfig, FitReport, OnlineCodebook, Training, fit
from pipeline.model import VQModel, weights_hash
from pipeline.training.device import torch_device
from pipeline.training.rate import learning_rate
from tests.fit.cases import QUICK, TINY, photographs, tiny_config


def reported(config: FitConfig) -> tuple[VQModel, list[FitReport]]:
    reports: list[FitReport] = []
    return fit(photographs(), config, lambda report, _: reports.append(report)), reports


@pytest.fixture(scope="module")
def trained() -> tuple[VQModel, list[FitReport]]:
    return reported(tiny_config())


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


def test_codebook_loss_pulls_codes_to_their_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    update = OnlineCodebook.update

    def spy(self: OnlineCodebook, vectors: Tensor, indices: Tensor) -> Tensor:
        seen.append((vectors, indices))
        return update(self, vectors, indices)

    monkeypatch.setattr(OnlineCodebook, "update", spy)
    config = tiny_config(steps=9, continuous_steps=8, codebook="gradient", gradient_clip=1e9, learning_rate=1e-12)
    training = Training(photographs(), config)
    for _ in range(9):
        training.advance()
    ((vectors, indices),) = seen
    codes = training.model.quantize.embedding.weight  # hardly moved since: the rate is tiny
    expected = torch.zeros_like(codes).index_add_(0, indices, codes.detach()[indices] - vectors) * 2 / vectors.numel()
    assert codes.grad is not None
    assert torch.allclose(codes.grad, expected, atol=1e-7)
    assert expected.abs().max() > 1e-4


def test_codebook_by_gradient_learns() -> None:
    _, reports = reported(tiny_config(codebook="gradient"))
    assert reports[-1].psnr > reports[0].psnr + 2
    assert reports[-1].usage > 0.8


def test_restarted_codes_have_no_momentum(monkeypatch: pytest.MonkeyPatch) -> None:
    picked, restarts = torch.tensor([3, 5]), []
    monkeypatch.setattr(OnlineCodebook, "restart_dead", lambda *_: restarts.append(1) or picked)
    config = tiny_config(steps=30, continuous_steps=2, codebook="gradient", restart_interval=10)
    training = Training(photographs(), config)
    for _ in range(21):  # the last one is step 20, which restarts
        training.advance()
    codes = training.model.quantize.embedding.weight
    moment = training.state().tensors["optimizer.quantize.embedding.weight.exp_avg"]
    fresh = 0.1 * codes.grad  # AdamW's first moment after one step
    alike = torch.isclose(moment, fresh, rtol=1e-3, atol=1e-9).all(dim=1)
    assert len(restarts) == 2
    assert alike.nonzero()[:, 0].tolist() == [3, 5]


def test_bf16_is_near_float32_and_keeps_float32_weights() -> None:
    full, full_reports = reported(tiny_config(**QUICK))
    model, reports = reported(tiny_config(**QUICK, precision="bf16"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert weights_hash(model) != weights_hash(full)
    assert reports[-1].psnr == pytest.approx(full_reports[-1].psnr, abs=0.7)


@pytest.mark.parametrize(
    ("wanted", "there", "found"),
    [("auto", False, "cpu"), ("auto", True, "cuda"), ("cpu", True, "cpu"), ("cuda:1", True, "cuda:1")],
)
def test_device(wanted: str, there: bool, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert str(torch_device(wanted)) == found


@pytest.mark.parametrize(
    ("device", "says"), [("cuda", "torch finds no CUDA device"), ("gpu", "must be auto or a torch device, got 'gpu'")]
)
def test_device_that_is_not_there(device: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=says):
        fit(photographs(1), tiny_config(device=device))


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
        ({"workers": 4}, r"workers must divide the 2 crops of a step with crops of 32 pixels .* got 4"),
        ({"held_out_side": 33}, r"held_out_side must be a multiple of .* \(2\), got 33"),
        ({"crop": 8, "perceptual_file": "x"}, "crop must be at least 16 with a perceptual_file, got 8"),
    ],
)
def test_invalid_configuration(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        tiny_config(**changes)
