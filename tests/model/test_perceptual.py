"""The perceptual distance, on random weights in the layouts of torchvision's VGG16 and of LPIPS v0.1."""

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.functional.image import lpips

from pipeline.errors import UsageError
from pipeline.model.perceptual import BLOCKS, PerceptualDistance
from tests.support.networks import LAYOUT, lpips_heads, save_weights, vgg16_weights


@pytest.fixture(scope="module", params=["vgg16", "lpips"])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    heads = lpips_heads() if request.param == "lpips" else {}
    path = tmp_path_factory.mktemp("vgg") / f"{request.param}.safetensors"
    return save_weights(path, {**vgg16_weights(), **heads})


def images(seed: int) -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def distances_by_the_paper(heads: dict[str, Tensor]) -> Tensor:
    """Of images(0) and images(1), for VGG16 and `heads`, in double precision."""
    weights, distances = vgg16_weights(), torch.zeros(2, dtype=torch.float64)
    shift, scale = (torch.tensor(v)[:, None, None] for v in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))
    features = [(x.double() - shift) / scale for x in (images(0), images(1))]  # as LPIPS spells ImageNet's statistics
    for number in LAYOUT:
        if number in (5, 10, 17, 24):
            features = [torch.nn.functional.max_pool2d(x, 2) for x in features]
        weight, bias = weights[f"features.{number}.weight"].double(), weights[f"features.{number}.bias"].double()
        features = [torch.nn.functional.conv2d(x, weight, bias, padding=1).clamp_min(0) for x in features]
        if number in (2, 7, 14, 21, 28):
            first, second = (x / (x.norm(dim=1, keepdim=True) + 1e-10) for x in features)
            head = heads.get(f"lin{(2, 7, 14, 21, 28).index(number)}.model.1.weight", torch.ones(1, 1, 1, 1))
            distances += ((first - second) ** 2 * head).sum(dim=1).mean(dim=(1, 2))
    return distances


def test_blocks_are_torchvisions() -> None:
    assert list(itertools.chain(*BLOCKS)) == list(LAYOUT)


def test_distance_follows_its_definition(file: Path) -> None:
    heads = lpips_heads() if file.stem == "lpips" else {}
    distance = PerceptualDistance(file)
    assert distance.is_lpips == bool(heads)
    found = distance(images(0), images(1)).tolist()
    assert found == pytest.approx(distances_by_the_paper(heads).tolist(), rel=1e-4)


def vgg16_features() -> nn.Sequential:
    """`torchvision.models.vgg16().features`, configuration D, with our random weights."""
    layers: list[nn.Module] = []
    width = 3
    for wide in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        layers += [nn.Conv2d(width, wide, 3, padding=1, device="meta"), nn.ReLU()] if wide else [nn.MaxPool2d(2)]
        width = wide or width
    features = nn.Sequential(*layers)
    weights = {name.removeprefix("features."): tensor for name, tensor in vgg16_weights().items()}
    features.load_state_dict(
        {name: tensor for name, tensor in weights.items() if "classifier" not in name}, assign=True
    )
    return features


def test_distance_is_torchmetrics_with_the_published_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lpips, "_get_tv_model_features", lambda *_: vgg16_features())
    theirs = lpips._LPIPS(net="vgg").eval()
    heads = torch.load(Path(lpips.__file__).parent / "lpips_models" / "vgg.pth", "cpu", weights_only=True)
    distance = PerceptualDistance(save_weights(tmp_path / "lpips.safetensors", {**vgg16_weights(), **heads}))
    assert distance.is_lpips
    with torch.inference_mode():
        expected = theirs(images(0), images(1)).flatten().tolist()
        assert distance(images(0), images(1)).tolist() == pytest.approx(expected, rel=1e-3)


def test_distance_of_equal_images_is_zero(file: Path) -> None:
    distance = PerceptualDistance(file)
    assert distance(images(0), images(0)).tolist() == [0, 0]
    assert distance(images(0), images(1)).tolist() == pytest.approx(distance(images(1), images(0)).tolist())


def test_distance_grows_with_the_change(file: Path) -> None:
    distance, noise = PerceptualDistance(file), images(1)
    found = [distance(images(0), images(0) + amount * noise).mean().item() for amount in (0.01, 0.1, 0.5, 1.0)]
    assert found == sorted(found)
    assert 0 < found[0] < found[-1] < 4 * len(BLOCKS), "unit vectors are at most 2 apart"


def test_gradient_reaches_the_image_and_no_weight(file: Path) -> None:
    distance, changed = PerceptualDistance(file), images(1).requires_grad_()
    before = distance(images(0), changed).mean()
    before.backward()
    assert changed.grad is not None
    assert all(weight.grad is None for weight in distance.parameters())
    assert distance(images(0), changed - 0.1 * changed.grad / changed.grad.abs().max()).mean() < before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"features.28.bias": None}, "missing or of another shape: features.28.bias$"),
        ({"features.0.weight": torch.zeros(64, 1, 3, 3)}, "another shape: features.0.weight$"),
        (dict.fromkeys(vgg16_weights()), "another shape: (features.*){6} and more$"),
        ({"lin3.model.1.weight": torch.ones(1, 512, 1, 1)}, "another shape: lin0.model.1.weight, .*lin4"),
        (lpips_heads() | {"lin2.model.1.weight": torch.ones(256)}, "another shape: lin2.model.1.weight$"),
    ],
)
def test_weights_that_do_not_fit(change: dict[str, Tensor | None], says: str, tmp_path: Path) -> None:
    path = save_weights(tmp_path / "w.safetensors", {**vgg16_weights(), **change})
    with pytest.raises(UsageError, match=says):
        PerceptualDistance(path)


@pytest.mark.parametrize("content", [None, b"no weights"])
def test_file_that_cannot_be_read(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "vgg16.pth").write_bytes(content)
    with pytest.raises(UsageError, match=r"vgg16\.pth: must be VGG16 weights as safetensors"):
        PerceptualDistance(tmp_path / "vgg16.pth")
