"""The perceptual distance, on random weights in the layout of torchvision's VGG16."""

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.errors import UsageError
from pipeline.fit import fit
from pipeline.fit.perceptual import BLOCKS, PerceptualDistance
from pipeline.model import weights_hash
from tests.fit.cases import QUICK, photographs, tiny_config

# Convolutions of torchvision.models.vgg16().features: number -> channels out.
LAYOUT = {0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256} | dict.fromkeys((17, 19, 21, 24, 26, 28), 512)


def vgg16_weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = {"classifier.6.bias": torch.zeros(1000)}
    for before, (number, width) in zip([3, *LAYOUT.values()], LAYOUT.items(), strict=False):
        scale = (2 / (9 * before)) ** 0.5
        weights[f"features.{number}.weight"] = torch.randn(width, before, 3, 3, generator=generator) * scale
        weights[f"features.{number}.bias"] = torch.randn(width, generator=generator) * 0.1
    return weights


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vgg") / "vgg16.safetensors"
    save_file(vgg16_weights(), path)
    return path


def images(seed: int) -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_blocks_are_torchvisions() -> None:
    assert list(itertools.chain(*BLOCKS)) == list(LAYOUT)


def test_distance_of_equal_images_is_zero(file: Path) -> None:
    distance = PerceptualDistance(file)
    assert distance(images(0), images(0)).item() == 0
    assert distance(images(0), images(1)).item() == pytest.approx(distance(images(1), images(0)).item())


def test_distance_grows_with_the_change(file: Path) -> None:
    distance, noise = PerceptualDistance(file), images(1)
    found = [distance(images(0), images(0) + amount * noise).item() for amount in (0.01, 0.1, 0.5, 1.0)]
    assert found == sorted(found)
    assert 0 < found[0] < found[-1] < 4 * len(BLOCKS), "unit vectors are at most 2 apart"


def test_distance_follows_its_definition(file: Path) -> None:
    weights, distance = vgg16_weights(), torch.zeros(())
    features = [(x / 2 + 0.5 - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) for x in (images(0), images(1))]
    features = [x / torch.tensor([0.229, 0.224, 0.225])[:, None, None] for x in features]
    for number in LAYOUT:
        if number in (5, 10, 17, 24):
            features = [torch.nn.functional.max_pool2d(x, 2) for x in features]
        weight, bias = weights[f"features.{number}.weight"], weights[f"features.{number}.bias"]
        features = [torch.nn.functional.conv2d(x, weight, bias, padding=1).clamp_min(0) for x in features]
        if number in (2, 7, 14, 21, 28):
            first, second = (x / x.norm(dim=1, keepdim=True) for x in features)
            distance += ((first - second) ** 2).sum(dim=1).mean()
    assert PerceptualDistance(file)(images(0), images(1)).item() == pytest.approx(distance.item(), rel=1e-4)


def test_gradient_reaches_the_image_and_no_weight(file: Path) -> None:
    distance, changed = PerceptualDistance(file), images(1).requires_grad_()
    before = distance(images(0), changed)
    before.backward()
    assert changed.grad is not None
    assert all(weight.grad is None for weight in distance.parameters())
    assert distance(images(0), changed - 0.1 * changed.grad / changed.grad.abs().max()) < before


def test_term_changes_the_training(file: Path) -> None:
    short = {**QUICK, "steps": 3, "continuous_steps": 1, "batch_size": 2}
    plain = fit(photographs(), tiny_config(**short))
    unweighted = fit(photographs(), tiny_config(**short, perceptual_file=file, perceptual_weight=0))
    weighted = fit(photographs(), tiny_config(**short, perceptual_file=file))
    assert weights_hash(plain) == weights_hash(unweighted) != weights_hash(weighted)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"features.28.bias": None}, "missing or of another shape: features.28.bias$"),
        ({"features.0.weight": torch.zeros(64, 1, 3, 3)}, "another shape: features.0.weight$"),
        (dict.fromkeys(vgg16_weights()), "another shape: (features.*){6} and more$"),
    ],
)
def test_weights_that_do_not_fit(change: dict[str, Tensor | None], says: str, tmp_path: Path) -> None:
    weights = {name: tensor for name, tensor in (vgg16_weights() | change).items() if tensor is not None}
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match=says):
        PerceptualDistance(tmp_path / "w.safetensors")


@pytest.mark.parametrize("content", [None, b"no weights"])
def test_file_that_cannot_be_read(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "vgg16.pth").write_bytes(content)
    with pytest.raises(UsageError, match=r"perceptual_file=.*vgg16\.pth: must be VGG16 weights as safetensors"):
        PerceptualDistance(tmp_path / "vgg16.pth")
