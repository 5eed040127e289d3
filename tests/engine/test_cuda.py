"""Batches on a CUDA device, with a stand-in for CUDA that delays all it may: whose images, whose indices."""

import gc
import random
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
import torch

from pipeline.engine.cuda import CudaLine, Gpu, Started, numbered
from pipeline.meter import Meter
from tests.support.slow_gpu import Event, SlowGpu, Stream

SIDE, BATCH = 4, 8
SHAPES = (2, BATCH)


def images(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 255, (count, SIDE, SIDE, 3), np.uint8)


def tokens(batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Stands in for the model: an image's tokens are some of its pixels; black images "overflow"."""
    return batch[:, ::2, ::2, 0].long(), (batch.flatten(1) > 0).any(1)


def line(
    gpu: SlowGpu, forward: Callable = tokens, *, graphs: bool = True, shapes: tuple[int, ...] = SHAPES
) -> CudaLine:
    made = CudaLine(gpu, (SIDE, SIDE, 3), (2, 2), Meter(), graphs=graphs)
    made.prepare(forward, shapes)
    return made


def wrong_batches(gpu: SlowGpu, seed: int, rounds: int = 40) -> int:
    """Many batches through one line, fetched late, in any order, or never; how many came out wrong."""
    lots, made, wrong = random.Random(seed), line(gpu), 0
    waiting: list[tuple[np.ndarray, Started]] = []

    def check(given: np.ndarray, started: Started) -> int:
        return not np.array_equal(started.result()[0], given[:, ::2, ::2, 0])

    with ThreadPoolExecutor(1) as lane:
        for number in range(rounds):
            given = images(lots.randint(1, BATCH), number)
            theirs = given.copy()
            waiting.append((given, lane.submit(made.start, theirs).result()))
            theirs[:] = 0  # the line has its own copy by now
            while len(waiting) > lots.randint(0, 4):
                taken = waiting.pop(lots.randrange(len(waiting)))
                wrong += 0 if lots.random() < 0.2 else check(*taken)
        wrong += sum(check(*left) for left in waiting)
    return wrong


@pytest.mark.parametrize("eager", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("seed", range(5))
def test_every_batch_gets_its_own_indices(seed: int, eager: float) -> None:
    assert wrong_batches(SlowGpu(seed, eager), seed) == 0


@pytest.mark.parametrize(
    ("what", "name"),
    [(Stream, "wait_event"), (Event, "synchronize")],
    ids=["no wait for copies", "no wait for results"],
)
def test_stand_in_shows_what_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, what: type, name: str) -> None:
    monkeypatch.setattr(what, name, lambda *_: None)
    monkeypatch.setattr(Event, "elapsed_time", lambda *_: 1.0)
    assert sum(wrong_batches(SlowGpu(seed, 0.1), seed) for seed in range(5)) > 5


def test_slot_that_is_used_too_early_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgetful(CudaLine):
        def start(self, batch: np.ndarray) -> Started:
            self._slots[0].last = None
            return super().start(batch)

    monkeypatch.setattr("tests.engine.test_cuda.CudaLine", Forgetful)
    assert wrong_batches(SlowGpu(2, 0.1), 2) > 5


def test_tails_are_padded_with_black_to_one_of_the_shapes() -> None:
    seen = []

    def forward(batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append((len(batch), int((batch.flatten(1) == 0).all(1).sum())))
        return tokens(batch)

    made = line(SlowGpu(eager=1.0), forward, graphs=False)
    for count in (1, 2, 3, 8):
        indices, finite = made.start(images(count, count)).result()
        assert (len(indices), finite.all()) == (count, True), "padding is not the caller's"
    assert seen == [(2, 1), (2, 0), (8, 5), (8, 0)]


def test_each_shape_is_captured_once() -> None:
    gpu = SlowGpu()
    made = line(gpu)
    for count in (8, 1, 8, 5, 2):
        made.start(images(count, 0)).result()
    assert gpu.captured == 2
    made.prepare(tokens, (BATCH,))
    made.start(images(1, 0)).result()
    assert gpu.captured == 3, "other shapes, other programs"


def test_batches_under_way_survive_a_change_of_shapes() -> None:
    made = line(SlowGpu(3, 0.0))
    given = [images(5, number) for number in range(3)]
    started = [made.start(batch) for batch in given]
    made.prepare(lambda batch: (tokens(batch)[0] + 1, tokens(batch)[1]), (4,))
    for batch, one in zip(given, started, strict=True):
        assert np.array_equal(one.result()[0], batch[:, ::2, ::2, 0])
    assert np.array_equal(made.start(given[0][:4]).result()[0], given[0][:4, ::2, ::2, 0].astype(int) + 1)


def test_images_that_overflow_are_reported() -> None:
    batch = images(3, 0)
    batch[1] = 0
    assert line(SlowGpu()).start(batch).result()[1].tolist() == [True, False, True]


def short_of_memory(limit: int, tried: list[int]) -> Callable:
    def forward(batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tried.append(len(batch))
        if len(batch) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return tokens(batch)

    return forward


@pytest.mark.parametrize("graphs", [False, True])
def test_batch_that_does_not_fit_is_halved_and_stays_halved(graphs: bool) -> None:
    tried: list[int] = []
    made, batch = line(SlowGpu(eager=1.0), short_of_memory(2, tried), graphs=graphs, shapes=(16,)), images(16, 0)
    for _ in range(2):
        assert np.array_equal(made.start(batch).result()[0], batch[:, ::2, ::2, 0])
    assert tried[:4] == [16, 8, 4, 2]
    assert set(tried[4:]) == {2}, "no second attempt at what did not fit"


@pytest.mark.parametrize("graphs", [False, True])
def test_memory_that_is_short_shows_in_a_sweep(graphs: bool) -> None:
    made = line(SlowGpu(eager=1.0), short_of_memory(2, []), graphs=graphs)
    made.may_halve = False
    with pytest.raises(torch.OutOfMemoryError):
        made.start(images(BATCH, 0)).result()


@pytest.mark.parametrize("graphs", [False, True])
def test_batch_that_did_not_fit_leaves_nothing_behind(graphs: bool) -> None:
    """Without the garbage collector: it does not know how short the device's memory is."""
    held: list[weakref.ref] = []

    def forward(batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        activations = batch.float()
        held.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("CUDA out of memory")

    made = line(SlowGpu(eager=1.0), forward, graphs=graphs)
    made.may_halve = False
    gc.collect()
    gc.disable()
    try:
        with suppress(torch.OutOfMemoryError):
            made.start(images(BATCH, 0)).result()
        assert [one() for one in held] == [None]
    finally:
        gc.enable()


def test_lane_is_given_a_device_that_cuda_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.cuda.set_device` refuses a device without a number; its own check runs here."""
    chosen: list[int] = []
    monkeypatch.setattr(torch._C, "_cuda_setDevice", chosen.append, raising=False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda _: None)
    for name, number in [("cuda", 3), ("cuda:1", 1)]:
        gpu = Gpu.__new__(Gpu)
        gpu.device, gpu.compute = numbered(torch.device(name)), None
        gpu.enter()
        assert chosen.pop() == number
    assert numbered(torch.device("cpu")) == torch.device("cpu")


def test_graph_that_does_not_fit_beside_its_warm_up_is_captured_in_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, sizes = SlowGpu(eager=1.0), []

    def forward(batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sizes.append(len(batch))
        if made._capturing and len(batch) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return tokens(batch)

    def capture(work: Callable[[], object]) -> Callable[[], object]:
        work()
        return work

    monkeypatch.setattr(gpu, "capture", capture)
    made, batch = line(gpu, forward), images(8, 0)
    assert np.array_equal(made.start(batch).result()[0], batch[:, ::2, ::2, 0])
    assert sizes == [8, 8, 4, 4, 4, 4, 4, 4], "warmed up, failed; warmed up in halves, captured, replayed"
