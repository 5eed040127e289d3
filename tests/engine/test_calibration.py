"""What is chosen before the first shard: the precision, by what it keeps and how fast it is, and the batch size."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.encoding import Precision, Trial, candidates, choose
from pipeline.engine import Engine
from pipeline.engine.calibration import BatchSizes, sweep, try_precisions
from pipeline.errors import ModelError
from pipeline.model import VQModel
from tests.engine.test_engine import images, overflowing

EXACT, TF32, BF16, FP16 = Precision.EXACT, Precision.TF32, Precision.BF16, Precision.FP16


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> VQModel:
    return VQModel.from_pretrained(tiny_model)


@pytest.mark.parametrize(
    ("fp16", "bf16", "tf32", "floor", "chosen"),
    [
        ((0.996, 2000, 0), (0.97, 2100, 0), (0.997, 900, 0), 0.99, FP16),
        ((0.996, 2000, 0), (0.97, 2100, 0), (0.997, 900, 0), 0.95, BF16),  # the user accepts more flips
        ((0.996, 2000, 0), (0.97, 2100, 0), (0.998, 900, 0), 0.9965, TF32),
        ((0.996, 2000, 0), (0.97, 2100, 0), (0.998, 900, 0), 0.999, EXACT),
        ((1.0, 2000, 1), (0.97, 2100, 0), (0.997, 900, 0), 0.99, TF32),  # one overflow, and half floats are out
        ((0.99, 2000, 0), (0.97, 2100, 0), (0.997, 900, 0), 0.99, FP16),  # at least: equal is enough
        ((0.999, 300, 0), (0.999, 200, 0), (0.999, 350, 0), 0.99, EXACT),  # where none is faster, there is no reason
        ((0.0, 2000, 0), (0.0, 2000, 0), (0.0, 2000, 0), 1.0, EXACT),
    ],
)
def test_fastest_precision_that_keeps_the_tokens(fp16, bf16, tf32, floor: float, chosen: Precision) -> None:
    trials = [Trial(EXACT, 1.0, 400.0), Trial(TF32, *tf32), Trial(BF16, *bf16), Trial(FP16, *fp16)]
    assert choose(trials, floor).precision is chosen
    assert choose(trials[::-1], floor).precision is chosen


@pytest.mark.parametrize(("device", "tried"), [("cpu", [EXACT]), ("cuda", [EXACT, TF32, BF16, FP16])])
def test_precisions_that_a_device_is_tried_with(device: str, tried: list[Precision]) -> None:
    assert list(candidates(device)) == tried


def test_exact_alone_is_not_measured(model: VQModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(model, image_size=32)
    monkeypatch.setattr(engine, "encode", None)
    assert try_precisions(engine, images(2), [EXACT]) == [Trial(EXACT, 1.0, 0.0)]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.engine.calibration.RATE_SECONDS", 0.0)


@pytest.mark.usefixtures("quick")
def test_agreement_is_that_of_the_tokens(model: VQModel) -> None:
    engine, batch = Engine(model, image_size=32, batch_size=16), images(16)
    exact, bf16 = try_precisions(engine, batch, [EXACT, BF16])
    assert (exact.agreement, exact.overflowed) == (1.0, 0)
    assert 0.3 < bf16.agreement < 1.0, "bfloat16 flips some tokens; all or none would mean that nothing was compared"
    assert engine.precision is BF16
    tokens = Engine(model, image_size=32, batch_size=16).encode(batch)
    assert bf16.agreement == pytest.approx((engine.encode(batch[:2]) == tokens[:2]).mean(), abs=0.1)


@pytest.mark.usefixtures("quick")
def test_precision_whose_range_is_too_small_is_noticed(model: VQModel) -> None:
    trials = try_precisions(Engine(overflowing(model), image_size=32), images(6), [EXACT, BF16, FP16])
    assert [trial.overflowed for trial in trials] == [0, 0, 6]
    assert trials[-1].agreement == 1.0, "they were encoded again"
    assert choose([Trial(EXACT, 1.0, 1.0), Trial(FP16, 1.0, 9.0, trials[-1].overflowed)], 0.9).precision is EXACT


def test_precision_that_the_device_lacks(model: VQModel) -> None:
    with pytest.raises(ModelError, match="tf32 needs a CUDA device"):
        try_precisions(Engine(model, image_size=32), images(2), [TF32])


@pytest.mark.usefixtures("quick")
def test_sweep_keeps_the_given_batch_size(model: VQModel) -> None:
    engine = Engine(model, image_size=32)
    assert list(sweep(engine, images(3), 4)) == [4]
    assert engine.batch_size == 4


class Sweepable:
    """What `sweep` needs of an engine on CUDA, with a throughput that the test decides."""

    device = torch.device("cuda")
    image_size, batch_size, first_batch, halves = 32, 0, 8, True
    batch_size_tried, room = 0, 1 << 20  # room for QA beside batches of so many images

    def set_batch_size(self, size: int) -> None:
        self.batch_size = size

    def may_halve(self, allowed: bool) -> None:
        self.halves = allowed

    def try_beside(self, _images: np.ndarray) -> None:
        if self.batch_size_tried > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")


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
        assert not engine.halves, "memory that is short must show"
        engine.batch_size_tried = size
        found = rates[size]
        if found is None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return found

    monkeypatch.setattr("pipeline.engine.calibration.measure_rate", rate)
    engine = Sweepable()
    assert list(sweep(engine, images(1), None)) == tried
    assert (engine.batch_size, engine.halves) == (chosen, True)


def test_batch_that_leaves_no_room_for_qa_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def rate(engine: Sweepable, _images: np.ndarray, size: int) -> float:
        engine.batch_size_tried = size
        return float(size)

    monkeypatch.setattr("pipeline.engine.calibration.measure_rate", rate)
    engine = Sweepable()
    engine.room = 16
    assert list(sweep(engine, images(1), None)) == [8, 16]
    assert engine.batch_size == 16


def test_what_happens_beside_the_batches_is_tried(model: VQModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, decoded = Engine(model, image_size=32), []
    monkeypatch.setattr(engine, "decode", decoded.append)
    engine.try_beside(images(2))
    assert np.array_equal(decoded[0], engine.encode(images(2)))
    assert engine.overflowed == 0


def test_model_that_does_not_fit_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def rate(*_: object) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("pipeline.engine.calibration.measure_rate", rate)
    with pytest.raises(ModelError, match="batches of 8 images of 32 pixels do not fit"):
        sweep(Sweepable(), images(1), None)


def test_batch_sizes_are_remembered_by_circumstances(tmp_path: Path) -> None:
    known = BatchSizes(tmp_path / "cache")
    assert known.get(("H200", "fp16", 256)) is None
    known.put(128, ("H200", "fp16", 256))
    known.put(64, ("A100", "fp16", 256))
    known.put(96, ("A100", "fp16", 256))
    again = BatchSizes(tmp_path / "cache")
    assert [again.get((device, "fp16", 256)) for device in ("H200", "A100", "T4")] == [128, 96, None]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["batch_sizes.json"], "nothing is left over"


@pytest.mark.parametrize("content", ["", "[]", '{"H200": "many"}', '{"H200": -1}'])
def test_batch_sizes_that_cannot_be_read_are_unknown(tmp_path: Path, content: str) -> None:
    (tmp_path / "batch_sizes.json").write_text(content)
    known = BatchSizes(tmp_path)
    assert known.get(["H200"]) is None
    known.put(8, ["H200"])
    assert known.get(["H200"]) == 8


def test_cache_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    BatchSizes(tmp_path / "file").put(8, ["H200"])
    assert BatchSizes(tmp_path / "file").get(["H200"]) is None
