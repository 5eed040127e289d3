"""LPIPS and Inception's features in the evidence, and weight files that are not what they should be."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config import resolve
from pipeline.encoding import Precision
from pipeline.engine import Engine
from pipeline.errors import UsageError
from pipeline.messages import ShardReport, Task
from pipeline.model.perceptual import PerceptualDistance
from pipeline.qa.config import QaConfig
from pipeline.qa.networks import Networks, load_networks
from pipeline.shards.manifest import freeze
from pipeline.storage import Storage
from pipeline.worker import Worker
from tests.qa.conftest import SIZE
from tests.qa.parts import inspected, photo_crops
from tests.support.networks import Colours, Plain, lpips_heads, save_script, save_weights, sha256, vgg16_weights

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
CPU = torch.device("cpu")
NEITHER = ["lpips", "rfid"]


@pytest.fixture(scope="module")
def lpips_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_weights(tmp_path_factory.mktemp("lpips") / "lpips.safetensors", {**vgg16_weights(), **lpips_heads()})


@pytest.fixture(scope="module")
def networks(lpips_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Networks:
    script = save_script(tmp_path_factory.mktemp("inception") / "colours.pt", Colours())
    return load_networks(QaConfig(lpips_weights=lpips_file, **script), CPU, SIZE)


def planes(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def test_evidence_holds_what_the_networks_say(
    networks: Networks, lpips_file: Path, demo_engine: Engine, tmp_path: Path
) -> None:
    pixels = photo_crops(20, SIZE)
    found = inspected(tmp_path, pixels, demo_engine, networks=networks)
    originals = pixels[[sample.sample_index for sample in found.samples]]
    others = demo_engine.decode(demo_engine.encode(originals))
    with torch.inference_mode():
        expected = PerceptualDistance(lpips_file)(*(planes(x) / 127.5 - 1 for x in (originals, others)))
    assert [sample.lpips for sample in found.samples] == pytest.approx(expected.tolist(), rel=1e-3)
    assert found.report.lpips == pytest.approx(expected[:4].mean().item(), rel=1e-3)
    for name, images in (("original_features", originals), ("reconstruction_features", others)):
        features = [getattr(sample, name) for sample in found.samples]
        wanted = Colours()(planes(images), return_features=True)
        assert np.allclose(features[:4], wanted[:4], atol=1e-6)
        assert features[4:] == [None] * (len(found.samples) - 4), "of random samples alone"
    assert (found.report.not_computed, found.report.weight_files) == ({}, networks.weight_files)


def test_evidence_without_networks_says_so(demo_engine: Engine, tmp_path: Path) -> None:
    found = inspected(tmp_path, photo_crops(8, SIZE), demo_engine)
    assert (found.report.lpips, sorted(found.report.not_computed)) == (None, NEITHER)
    assert all(sample.lpips is sample.original_features is None for sample in found.samples)


def test_lpips_of_equal_images_is_zero(networks: Networks) -> None:
    images = photo_crops(3, SIZE)
    assert networks.lpips(images, images) == [0, 0, 0]


def test_features_of_a_module_without_options(tmp_path: Path) -> None:
    networks = load_networks(QaConfig(**save_script(tmp_path / "plain.pt", Plain("means"))), CPU, 8)
    images = photo_crops(3, 8)
    assert np.allclose(networks.features(images), images.mean((1, 2)), atol=1e-3)
    assert list(networks.not_computed) == ["lpips"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lpips_weights": "none.safetensors"}, r"none\.safetensors: must be VGG16 weights .* cannot be read"),
        ({"lpips_weights": "unweighted.safetensors"}, "must hold LPIPS's learned heads"),
        (
            {"lpips_sha256": "0" * 64},
            r"qa\.lpips_weights=.*sha256 must be 0{64} \(qa\.lpips_sha256\), got [0-9a-f]{64}",
        ),
    ],
)
def test_lpips_weights_that_are_wrong(change: dict[str, str], says: str, lpips_file: Path, tmp_path: Path) -> None:
    save_weights(tmp_path / "unweighted.safetensors", {**vgg16_weights()})
    files = {name: tmp_path / value if name.endswith("weights") else value for name, value in change.items()}
    with pytest.raises(UsageError, match=says):
        load_networks(QaConfig(**{"lpips_weights": lpips_file, **files}), CPU, SIZE)


def test_lpips_pinned_and_of_images_too_small(lpips_file: Path) -> None:
    config = QaConfig(lpips_weights=lpips_file, lpips_sha256=sha256(lpips_file))
    assert load_networks(config, CPU, 16).weight_files == {"lpips": sha256(lpips_file)}
    with pytest.raises(UsageError, match=r"image\.size must be at least 16 with qa\.lpips_weights, got 8"):
        load_networks(config, CPU, 8)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("planes", r"must give features \[n, d\] .*, got \[2, 3, 96, 96\] for 2 images"),
        ("wide", r"with d at most 4096, got \[2, 27648\]"),
        ("other", r"its sha256 must be 0{64} \(qa\.inception_sha256\)"),
        ("damaged", "must be a TorchScript module"),
        ("absent", "cannot be read"),
    ],
)
def test_inception_weights_that_are_wrong(kind: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "inception.pt"
    settings: dict[str, Any] = {**save_script(path, Plain(kind))}
    if kind == "other":
        path.write_bytes(b"never loaded, for it would be called damaged")
        settings["inception_sha256"] = "0" * 64
    elif kind == "damaged":
        path.write_bytes(b"no TorchScript")
        settings["inception_sha256"] = sha256(path)
    elif kind == "absent":
        path.unlink()
    with pytest.raises(UsageError, match=says):
        load_networks(QaConfig(**settings), CPU, SIZE)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"qa.inception_weights": "x.pt"}, "must be given together, got one of them"),
        ({"qa.inception_sha256": "0" * 64}, "must be given together, got one of them"),
        ({"qa.lpips_sha256": "0" * 64}, "must come with qa.lpips_weights"),
        ({"qa.lpips_weights": "s3://bucket/x"}, r"qa\.lpips_weights must be a file on a local disk, got s3"),
        ({"qa.lpips_weights": "x", "qa.lpips_sha256": "abc"}, r"qa\.lpips_sha256: .*pattern"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        resolve(flags=settings, environment={})


def test_relative_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve(flags={"qa.lpips_weights": "w.st"}, environment={}).qa.lpips_weights == tmp_path / "w.st"


def test_actor_loads_its_networks_before_the_first_shard(
    tmp_path: Path, tiny_model: Path, corpus: Path, lpips_file: Path
) -> None:
    flags = {"model": str(tiny_model), "output": str(tmp_path / "out"), "image.size": 32}
    qa = {"qa.lpips_weights": str(lpips_file)}
    worker = Worker(resolve(flags={**flags, **qa}, environment={}), 1, "cpu")
    worker.load()
    worker.start("f" * 64, 2, Precision.EXACT)
    [shard] = freeze(Storage(), [str(corpus / "00000.tar")])
    done = worker.tokenize(Task(shard, 1))
    assert isinstance(done, ShardReport)
    assert done.qa.lpips > 0
    wrong = Worker(resolve(flags={**flags, **qa, "qa.lpips_sha256": "0" * 64}, environment={}), 1, "cpu")
    with pytest.raises(UsageError, match="its sha256 must be"):
        wrong.load()
