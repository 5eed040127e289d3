"""Models on the device: what each precision keeps, images/s by batch and by way of launching, a profile."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from pipeline import calibration
from pipeline.encoding import Precision, Trial, candidates, choose
from pipeline.engine import Engine
from pipeline.forward import Forward
from pipeline.model import VQModel
from tests.benchmarks.gpu.ceilings import Figures, seconds, synchronize
from tests.benchmarks.gpu.geometries import Scale, build, gigaflops, photographs

MIN_AGREEMENT = 0.99  # the default of model.min_agreement
TOP = 15  # rows of the profile
HALF = {"cuda": Precision.FP16, "cpu": Precision.EXACT}
WAYS: dict[str, dict[str, bool]] = {
    "kernel by kernel": {"graphs": False},
    "graphs": {"graphs": True},
    "compiled": {"graphs": False, "compiled": True},
    "compiled, graphs": {"graphs": True, "compiled": True},
}


@contextmanager
def engine_of(model: VQModel, scale: Scale, device: str, **options: Any) -> Iterator[Engine]:
    """An engine that is ended."""
    with closing(Engine(model, device=device, image_size=scale.size, **options)) as engine:
        yield engine


def check_engine(scale: Scale, device: str) -> Iterator[tuple[str, bool, str]]:
    """Streams and graphs against doing one batch at a time kernel by kernel; CUDA against the CPU."""
    images, size = photographs(40, scale.size), 8
    cuts = [images[i : i + 1 + i % size] for i in range(0, 32, 3)]
    precision = HALF[device]
    with engine_of(build("demo", scale, device), scale, device, precision=precision, graphs=False) as plain:
        plain.set_batch_size(size)
        alone = [plain.encode(cut) for cut in cuts]
    with engine_of(build("demo", scale, device), scale, device, precision=precision, graphs=True) as engine:
        engine.set_batch_size(size)
        for _ in range(2):  # the first time captures
            ahead = [engine.submit(cut) for cut in cuts]
            found = [future.result().indices() for future in ahead]
        same = all(np.array_equal(one, other) for one, other in zip(found, alone, strict=True))
        yield "graphs, overlapped, give the bits of one batch at a time", same, f"{len(cuts)} batches"
        engine.set_precision(Precision.EXACT)
        here = np.concatenate([engine.encode(some) for some in np.split(images[:16], 2)])
    with engine_of(build("demo", scale, "cpu"), scale, "cpu") as reference:
        there = reference.encode(images[:16])
    share = float((here == there).mean())
    yield "exact gives the CPU's tokens (demo model)", share > 0.998, f"{share:.5f}"


def precisions(name: str, scale: Scale, device: str) -> Figures:
    """What `model.precision: auto` would measure and choose."""
    with engine_of(build(name, scale, device), scale, device) as engine, patch_rate_seconds(scale):
        trials = calibration.try_precisions(engine, photographs(scale.images, scale.size), candidates(device))
    return {"trials": [_row(trial) for trial in trials], "auto": str(choose(trials, MIN_AGREEMENT).precision)}


def _row(trial: Trial) -> Figures:
    return {
        "precision": str(trial.precision),
        "agreement": trial.agreement,
        "images_s": trial.rate,
        "overflowed": trial.overflowed,
    }


def patch_rate_seconds(scale: Scale) -> Any:
    """Let the calibration's rates take as long as this benchmark has time for."""
    return patch.object(calibration, "RATE_SECONDS", scale.seconds)


def rates(name: str, scale: Scale, device: str, ceilings: Figures) -> Figures:
    """Images/s by precision and batch, and the share of the matrix product's rate that the best one reaches."""
    model = build(name, scale, device)
    work, images, table = gigaflops(model, scale, device), photographs(8, scale.size), {}
    with engine_of(model, scale, device) as engine:
        for precision in candidates(device):
            engine.set_precision(precision)
            found = {size: rate_of(engine, images, size, scale) for size in scale.batches}
            best = max(rate or 0.0 for rate in found.values())
            share = best * work / 1e3 / ceilings[str(precision)]
            table[str(precision)] = {"images_s": found, "tflop_s": best * work / 1e3, "of_matrix_product": share}
    return {"gflop_per_image": work, "precisions": table}


def rate_of(engine: Engine, images: np.ndarray, size: int, scale: Scale) -> float | None:
    """Images/s from host memory to indices in host memory; None if the batch does not fit."""
    engine.may_halve(False)
    try:
        with patch_rate_seconds(scale):
            return calibration.measure_rate(engine, images, size)
    except torch.OutOfMemoryError:
        return None
    finally:
        engine.may_halve(True)


def ways(name: str, scale: Scale, device: str) -> Figures:
    """Images/s by the way of launching, beside the model as users write it."""
    images, size, found = photographs(8, scale.size), scale.batches[-1], {}
    for way, options in WAYS.items():
        if device == "cpu" and options.get("compiled"):
            continue  # minutes of a C++ compiler, for what a CPU does not gain by
        with engine_of(build(name, scale, device), scale, device, precision=HALF[device], **options) as engine:
            found[f"engine, {HALF[device]}, {way}"] = rate_of(engine, images, size, scale)
    batch = torch.from_numpy(np.resize(images, (size, *images.shape[1:]))).to(device)
    with patch("pipeline.kernels._has_triton", return_value=False), torch.no_grad():
        for way, encode in _as_users_write_it(name, scale, device):
            found[way] = size / seconds(lambda work=encode: work(batch), device, rounds=5)  # type: ignore[misc]
    return found


def _as_users_write_it(name: str, scale: Scale, device: str) -> Iterator[tuple[str, Callable[[torch.Tensor], object]]]:
    """The same model without our kernels, streams and graphs; images wait on the device already."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model = build(name, scale, device)
    yield "plain float32", model.encode_indices
    if device == "cuda":
        half = build(name, scale, device).to(memory_format=torch.channels_last)
        half = half.with_half_encoder(torch.float16)
        yield "plain float16, channels_last", half.encode_indices
        yield "plain float16, channels_last, torch.compile", torch.compile(half.encode_indices, dynamic=False)


def kernel_by_kernel(name: str, scale: Scale, device: str) -> list[Figures]:
    """Where the device's time goes: the longest kernels of one batch, launched one by one."""
    model = build(name, scale, device).to(memory_format=torch.channels_last)
    images = np.resize(photographs(8, scale.size), (scale.batches[-1], scale.size, scale.size, 3))
    forward, batch = Forward(model, HALF[device]), torch.from_numpy(images).to(device)
    forward(batch)
    synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU]) as profiler:
        forward(batch)
        synchronize(device)
    column = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, column))
    total = sum(getattr(event, column) for event in events)
    return [
        {"kernel": event.key[:90], "share": getattr(event, column) / total, "calls": event.count}
        for event in events[:TOP]
    ]


def together(name: str, scale: Scale, device: str) -> Figures:
    """Images/s of one engine, of two in one process, of two processes: does one keep the device busy?"""
    images, size = photographs(8, scale.size), scale.batches[-1] // 2
    engines = [
        Engine(build(name, scale, device), device=device, image_size=scale.size, precision=HALF[device])
        for _ in range(2)
    ]
    try:
        found: Figures = {"engines, 1": rate_of(engines[0], images, size, scale)}
        with ThreadPoolExecutor(2) as pool:
            found["engines, 2"] = sum(
                rate or 0.0 for rate in pool.map(lambda engine: rate_of(engine, images, size, scale), engines)
            )
    finally:
        for engine in engines:
            engine.close()
    count = 1 if scale.shrink > 1 else 2
    found[f"processes, {count}"] = sum(_in_processes(count, name, scale, device))
    return found


def _in_processes(count: int, name: str, scale: Scale, device: str) -> list[float]:
    """The rates of several processes that measure at the same time."""
    tiny = ["--tiny"] if scale.shrink > 1 else []
    command = [sys.executable, "-m", "tests.benchmarks.gpu", "--device", device, *tiny, "--worker", name]
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)
    ]
    try:
        ready = [worker.stdout.readline().strip() for worker in workers if worker.stdout]
        if ready != ["ready"] * count:
            raise RuntimeError(f"the processes must all say 'ready', got {ready}")
        return [float(worker.communicate("go\n")[0]) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def worker(name: str, scale: Scale, device: str) -> None:
    """What each of several processes does: get ready, wait for a word, measure, print the rate."""
    images, size = photographs(8, scale.size), scale.batches[-1] // 2
    with engine_of(build(name, scale, device), scale, device, precision=HALF[device]) as engine:
        engine.set_batch_size(size)
        engine.warm_up()
        print("ready", flush=True)
        sys.stdin.readline()
        begun = time.monotonic()
        rate = rate_of(engine, images, size, scale)
        print(rate if rate is not None else 0.0)
        assert time.monotonic() >= begun
