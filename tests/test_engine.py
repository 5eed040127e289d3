"""The engine on a CPU: same tokens whatever the batch, the lane never lies about whose they are."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.encoding import ModelConfig, Precision, batch_shapes, padded_size
from pipeline.engine import Engine, agreement, sweep
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


def test_decoding_takes_turns_with_batches(model: VQModel) -> None:
    engine, batch = Engine(model, image_size=32, batch_size=8), images(8)
    grids = engine.encode(batch)
    alone = engine.decode(grids)
    ahead = [engine.submit(batch) for _ in range(3)]
    assert np.array_equal(engine.decode(grids), alone)
    assert all(future.done() for future in ahead), "the lane has one thread, and these came first"
    assert all(np.array_equal(future.result().indices(), grids) for future in ahead)


def test_sweep_keeps_the_given_batch_size(model: VQModel) -> None:
    engine = Engine(model, image_size=32)
    assert list(sweep(engine, images(3), 4)) == [4]
    assert engine.batch_size == 4


def test_agreement_of_half_precision_is_measured(model: VQModel) -> None:
    exact, half = (Engine(model, image_size=32, batch_size=16, precision=p) for p in (Precision.EXACT, Precision.BF16))
    assert agreement(exact, images(16)) == 1.0
    kept = agreement(half, images(16))
    assert 0.3 < kept < 1.0, "bfloat16 flips some tokens; all or none would mean that nothing was compared"
    assert half.precision is Precision.BF16


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


class Sweepable:
    """What `sweep` needs of an engine on CUDA, with a throughput that the test decides."""

    device = torch.device("cuda")
    image_size, may_halve, batch_size = 32, True, 0

    def set_batch_size(self, size: int) -> None:
        self.batch_size = size


@pytest.mark.parametrize(
    ("rates", "chosen", "tried"),
    [
        ({8: 100, 16: 190, 32: 300, 64: 305, 128: 900}, 64, [8, 16, 32, 64]),  # flat from 32 to 64: stop growing
        ({8: 100, 16: 190, 32: None}, 16, [8, 16]),  # memory is short
        ({8: 100, 16: 90}, 8, [8, 16]),
    ],
)
def test_batch_grows_until_throughput_flattens_or_memory_is_short(
    monkeypatch: pytest.MonkeyPatch, rates: dict[int, float | None], chosen: int, tried: list[int]
) -> None:
    def rate(engine: Sweepable, _images: np.ndarray, size: int) -> float:
        assert not engine.may_halve, "memory that is short must show"
        found = rates[size]
        if found is None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return found

    monkeypatch.setattr("pipeline.engine._rate", rate)
    engine = Sweepable()
    assert list(sweep(engine, images(1), None)) == tried
    assert (engine.batch_size, engine.may_halve) == (chosen, True)


def test_model_that_does_not_fit_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def rate(*_: object) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("pipeline.engine._rate", rate)
    with pytest.raises(ModelError, match="batches of 8 images of 32 pixels do not fit"):
        sweep(Sweepable(), images(1), None)


def test_batch_that_does_not_fit_is_halved_and_stays_halved(model: VQModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, tried = Engine(model, image_size=32, batch_size=16), []

    def encode(batch: torch.Tensor) -> torch.Tensor:
        tried.append(len(batch))
        if len(batch) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return model.encode_indices(batch)

    monkeypatch.setattr(engine, "_encode", encode)
    batch = torch.from_numpy(images(16))
    first = engine._halving(batch)
    assert tried == [16, 8, 4, 4, 4, 4]
    assert torch.equal(engine._halving(batch), first)
    assert tried[6:] == [4, 4, 4, 4], "no second attempt at what did not fit"
    engine.may_halve = False
    engine.set_batch_size(16)
    with pytest.raises(torch.OutOfMemoryError):
        engine._halving(batch)
