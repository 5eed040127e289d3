"""Golden images: every device must give their tokens, from the file on."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.engine import Engine
from pipeline.errors import ModelError, Reject, Stage
from pipeline.images import ImageConfig, Prepared, prepare
from pipeline.model import VQModel
from pipeline.qa.config import QaConfig
from pipeline.qa.gates import Gate, Gates
from pipeline.qa.golden import (
    GOLDEN_NAME,
    Golden,
    golden_agreement,
    golden_of,
    make_golden,
    procedural_pictures,
    read_golden,
    write_golden,
)
from pipeline.storage import Storage
from tests.qa.parts import DEMO_MODEL, FaultyEngine

FLOOR = QaConfig().min_golden_agreement
assert FLOOR is not None


@pytest.fixture(scope="module")
def golden() -> list[Golden]:
    return make_golden(VQModel.from_pretrained(DEMO_MODEL), procedural_pictures(64))


@pytest.mark.parametrize(("size", "brought"), [(128, True), (64, False)])
def test_demo_model_brings_its_golden_images(size: int, brought: bool) -> None:
    """Whatever the size of the run: a device gets images of that size, others are held against the model itself."""
    model, shipped = VQModel.from_pretrained(DEMO_MODEL), read_golden(Storage(), str(DEMO_MODEL))
    assert shipped
    found, of_model = golden_of(model, Storage(), str(DEMO_MODEL), None, size)
    assert {one.grid.shape for one in found} == {(size // 8, size // 8)}
    assert ([one.image for one in found] == [one.image for one in shipped]) is brought
    engine = Engine(model, image_size=size)
    assert not fails(min(golden_agreement(engine, found), of_model))
    engine.close()


def test_wrong_checkpoint_shows_in_a_run_of_another_size() -> None:
    wrong = VQModel.from_pretrained(DEMO_MODEL)
    wrong.quantize.embedding.weight.data = wrong.quantize.embedding.weight.data.roll(1, 0)
    found, of_model = golden_of(wrong, Storage(), str(DEMO_MODEL), None, 64)
    assert fails(of_model)
    engine = Engine(wrong, image_size=64)
    assert not fails(golden_agreement(engine, found)), "the device does what the model says"
    engine.close()


def fails(agreement: float) -> bool:
    return [finding.gate for finding in Gates(QaConfig()).golden("actor", agreement, 0.99)] == [Gate.GOLDEN]


def test_healthy_device_gives_the_golden_tokens(golden: list[Golden], demo_engine: Engine) -> None:
    tokens = np.stack([one.grid for one in golden])
    assert len(np.unique(tokens)) > 100, "pictures of few codes would show little"
    assert not fails(golden_agreement(demo_engine, golden))


@pytest.mark.parametrize(
    "recipe",
    [ImageConfig(recipe=name, interpolation=how) for name in ("center-crop", "pad") for how in ("box", "lanczos")],
)
def test_no_recipe_changes_pictures_of_its_size(golden: list[Golden], demo_engine: Engine, recipe: ImageConfig) -> None:
    def prepared(data: bytes, config: ImageConfig) -> Prepared | Reject:
        return prepare(data, recipe.model_copy(update={"size": config.size}))

    assert golden_agreement(demo_engine, golden, prepared) == golden_agreement(demo_engine, golden)


def changed(pixels: Callable[[np.ndarray], np.ndarray]) -> Callable[[bytes, ImageConfig], Prepared | Reject]:
    def prepared(data: bytes, config: ImageConfig) -> Prepared | Reject:
        right = prepare(data, config)
        assert isinstance(right, Prepared)
        return replace(right, views=tuple(replace(view, pixels=pixels(view.pixels)) for view in right.views))

    return prepared


@pytest.mark.parametrize(
    "fault",
    [
        lambda pixels: pixels // 2 + 128,  # [0, 1] where the model wants [-1, 1]
        lambda pixels: np.ascontiguousarray(pixels[..., ::-1]),  # BGR
        lambda pixels: np.roll(pixels, 1, axis=1),  # a crop off by one
        lambda pixels: np.full_like(pixels, 128),
    ],
    ids=["range", "bgr", "shifted", "gray"],
)
def test_changed_preprocessing_is_caught(golden: list[Golden], demo_engine: Engine, fault: Callable) -> None:
    assert fails(golden_agreement(demo_engine, golden, changed(fault)))


@pytest.mark.parametrize("rate", [0.03, 0.3, 1.0])
def test_device_that_flips_bits_is_caught(golden: list[Golden], demo_engine: Engine, rate: float) -> None:
    rng = np.random.default_rng(0)
    broken = FaultyEngine(demo_engine, lambda tokens: tokens ^ (rng.random(tokens.shape) < rate))
    assert fails(golden_agreement(broken, golden))
    assert broken.fired > 0


@pytest.mark.parametrize("noise", [0.03, 0.3])
def test_wrong_checkpoint_is_caught(golden: list[Golden], noise: float) -> None:
    """The weights of the same training some steps on, or of another one."""
    model, generator = VQModel.from_pretrained(DEMO_MODEL), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.encoder.parameters():
            weight.add_(noise * weight.std(correction=0) * torch.randn(weight.shape, generator=generator))
    engine = Engine(model, image_size=64)
    assert fails(golden_agreement(engine, golden))
    engine.close()


def test_golden_images_of_another_geometry_are_refused(golden: list[Golden], tiny_model: Path) -> None:
    engine = Engine(VQModel.from_pretrained(tiny_model), image_size=64)
    with pytest.raises(ModelError, match=r"golden grids must be \(16, 16\) .* got \(8, 8\)"):
        golden_agreement(engine, golden)
    engine.close()


def test_golden_images_come_back_from_the_models_folder(golden: list[Golden], tmp_path: Path) -> None:
    folder = tmp_path / "vq"
    folder.mkdir()
    assert read_golden(Storage(), str(folder)) is None
    write_golden(folder, golden)
    for back in (read_golden(Storage(), str(folder)), read_golden(Storage(), f"file://{tmp_path}/", "vq")):
        assert [(one.key, one.image, one.grid.tolist()) for one in back] == [
            (one.key, one.image, one.grid.tolist()) for one in golden
        ]
    assert read_golden(Storage(), "organisation/model-on-the-hub") is None


def test_golden_images_of_a_model_are_its_own_or_made(golden: list[Golden], tmp_path: Path) -> None:
    model, size = VQModel.from_pretrained(DEMO_MODEL), 37  # rounded to the model's grid
    made, of_model = golden_of(model, Storage(), str(tmp_path), None, size)
    assert ([one.grid.shape for one in made], of_model) == ([(4, 4)] * 4, 1.0)
    write_golden(tmp_path, golden[:2])
    brought, of_model = golden_of(model, Storage(), str(tmp_path), None, 64)
    assert ([one.key for one in brought], of_model) == ([one.key for one in golden[:2]], 1.0)


@pytest.mark.parametrize("damage", [b"", b"PAR1PAR1", b"<html>" * 99])
def test_damaged_golden_file_is_a_fault_of_the_model(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / GOLDEN_NAME).write_bytes(damage)
    with pytest.raises(ModelError, match="cannot be read as golden images"):
        read_golden(Storage(), str(tmp_path))


def test_golden_image_that_cannot_be_decoded(golden: list[Golden], demo_engine: Engine) -> None:
    def refuse(data: bytes, config: ImageConfig) -> Reject:
        return Reject(Stage.DECODE, "corrupt", "no")

    with pytest.raises(ModelError, match="golden image procedural-0 cannot be decoded: corrupt"):
        golden_agreement(demo_engine, golden, refuse)
