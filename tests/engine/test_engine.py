"""The engine on a CPU: same tokens whatever the batch, the lane never lies about whose they are."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.encoding import ModelConfig, Precision, batch_shapes, padded_size
from pipeline.engine import Engine
from pipeline.engine.cpu import images_at_once
from pipeline.errors import ModelError
from pipeline.meter import Meter
from pipeline.model import VQModel


def images(count: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, size, size, 3), np.uint8)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> VQModel:
    return VQModel.from_pretrained(tiny_model)


def test_tokens_equal_the_plain_model(model: VQModel) -> None:
    batch = images(5)
    engine = Engine(model, image_size=32, batch_size=8)
    with torch.inference_mode():
        expected = torch.cat([model.encode_indices(torch.from_numpy(batch[i : i + 1])) for i in range(5)])
    got = engine.encode(batch)
    assert got.shape == (5, 8, 8)
    assert (got == expected.numpy()).mean() > 0.999
    assert len(np.unique(got)) > 8, "a test with one code would show nothing"


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8, 32])
def test_tokens_do_not_depend_on_the_batch(model: VQModel, batch_size: int) -> None:
    all_images = images(33)
    whole = Engine(model, image_size=32, batch_size=64).encode(all_images)
    engine = Engine(model, image_size=32, batch_size=batch_size)
    parts = [engine.submit(all_images[i : i + batch_size]) for i in range(0, 33, batch_size)]
    assert np.array_equal(np.concatenate([part.result().indices() for part in parts]), whole)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_tokens_do_not_depend_on_the_cores(model: VQModel, threads: int) -> None:
    engine, batch = Engine(model, image_size=32, threads=threads, batch_size=50), images(50)
    assert np.array_equal(engine.encode(batch), Engine(model, image_size=32, threads=5).encode(batch))


@pytest.mark.parametrize(("size", "at_once"), [(8, 16), (64, 16), (96, 7), (128, 4), (256, 1), (384, 1), (4096, 1)])
def test_images_that_a_core_takes_at_once(size: int, at_once: int) -> None:
    assert images_at_once(size) == at_once


def test_first_batch_has_work_for_every_core(model: VQModel) -> None:
    assert Engine(model, image_size=128, threads=3).batch_size == 3 * 4


def test_busy_time_is_measured(model: VQModel) -> None:
    meter = Meter()
    Engine(model, image_size=32, meter=meter).encode(images(2))
    assert meter.read().busy["encode"] > 0


@pytest.mark.parametrize("count", [1, 2, 5])
def test_tokens_are_decoded_as_by_the_plain_model(model: VQModel, count: int) -> None:
    engine = Engine(model, image_size=32, batch_size=8)
    grids = engine.encode(images(count))
    with torch.inference_mode():
        expected = model.decode_indices(torch.from_numpy(grids)).permute(0, 2, 3, 1).add(1).mul(127.5).numpy()
    got = engine.decode(grids)
    assert (got.shape, got.dtype) == ((count, 32, 32, 3), np.uint8)
    assert np.abs(got - expected).max() <= 0.5 + 1e-2
    assert got.std() > 1, "a flat picture would show nothing"


def test_decoding_beside_batches(model: VQModel) -> None:
    engine, batch = Engine(model, image_size=32, batch_size=8), images(8)
    grids = engine.encode(batch)
    alone = engine.decode(grids)
    ahead = [engine.submit(batch) for _ in range(3)]
    assert np.array_equal(engine.decode(grids), alone)
    assert all(np.array_equal(future.result().indices(), grids) for future in ahead)


def overflowing(model: VQModel) -> VQModel:
    """A model whose first activations leave float16's range, but for images of medium grey."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.encoder.conv_in.weight.mul_(2e5)  # the weights themselves stay within it
    return changed


def test_images_that_overflow_are_encoded_again_in_float32(model: VQModel) -> None:
    changed, batch = overflowing(model), images(7)
    batch[[1, 4]] = 127
    exact = Engine(changed, image_size=32, batch_size=8).encode(batch)
    engine = Engine(changed, image_size=32, batch_size=8, precision=Precision.FP16)
    found = engine.encode(batch)
    assert engine.overflowed == 5
    noisy = [0, 2, 3, 5, 6]
    assert np.array_equal(found[noisy], exact[noisy])
    assert len(np.unique(found[noisy])) > 8


def test_precision_can_be_changed_and_changed_back(model: VQModel) -> None:
    engine, batch = Engine(model, image_size=32, batch_size=8), images(8)
    exact = engine.encode(batch)
    engine.set_precision(Precision.BF16)
    half = engine.encode(batch)
    assert 0.3 < (half == exact).mean() < 1.0
    engine.set_precision(Precision.EXACT)
    assert np.array_equal(engine.encode(batch), exact)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"image_size": 30}, "image.size must be a multiple of 4"),
        ({"image_size": 32, "precision": Precision.TF32}, "tf32 needs a CUDA device"),
    ],
)
def test_unfit_engines_are_refused(model: VQModel, changes: dict, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        Engine(model, **changes)


@pytest.mark.parametrize(
    ("batch_size", "shapes"), [(1, (1,)), (4, (4,)), (8, (2, 8)), (32, (2, 8, 32)), (100, (2, 7, 25, 100))]
)
def test_few_batch_shapes(batch_size: int, shapes: tuple[int, ...]) -> None:
    assert batch_shapes(batch_size) == shapes
    for count in range(1, batch_size + 1):
        assert padded_size(count, shapes) >= count
    with pytest.raises(ValueError, match="at most"):
        padded_size(batch_size + 1, shapes)


def test_model_configuration_names_its_choices() -> None:
    with pytest.raises(ValueError, match="exact"):
        ModelConfig(precision="float8")
