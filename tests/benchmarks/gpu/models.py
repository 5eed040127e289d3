"""Models on the device: what each precision keeps, images/s by batch and by way of launching, a profile."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from pipeline.encoding import Precision, Trial, candidates, choose
from pipeline.engine import Engine, calibration
from pipeline.engine.forward import Forward
from pipeline.model import VQModel
from tests.benchmarks.gpu.ceilings import Figures, seconds, synchronize
from tests.benchmarks.gpu.geometries import QUICK, TINY, Scale, build, gigaflops, photographs

MIN_AGREEMENT = 0.99  # the default of model.min_agreement
PLAIN = ("float32", "float16, channels_last", "float16, channels_last, torch.compile")
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
    with engine_of(build(name, scale, device), scale, device) as engine:
        trials = calibration.try_precisions(engine, photographs(scale.images, scale.size), candidates(device))
    return {"trials": [_row(trial) for trial in trials], "auto": str(choose(trials, MIN_AGREEMENT).precision)}


def _row(trial: Trial) -> Figures:
    return {
        "precision": str(trial.precision),
        "agreement": trial.agreement,
        "images_s": trial.rate,
        "overflowed": trial.overflowed,
    }


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
        return calibration.measure_rate(engine, images, size, scale.seconds)
    except torch.OutOfMemoryError:
        return None
    finally:
        engine.may_halve(True)


def ways(name: str, scale: Scale, device: str) -> Figures:
    """Images/s by the way of launching, beside the model as users write it; or why a way failed."""
    found: Figures = {}
    for way, options in WAYS.items():
        if device == "cuda" or not options.get("compiled"):  # else minutes of a C++ compiler
            work = partial(_rate_of_way, name, scale, device, options)
            found[f"engine, {HALF[device]}, {way}"] = _or_why_not(work)
    for way in PLAIN if device == "cuda" else ("float32",):
        found[f"plain, {way}"] = _or_why_not(partial(_rate_without_us, name, scale, device, way))
    return found


def _or_why_not(work: Callable[[], float | None]) -> float | str | None:
    """What `work` finds, or its error: the other ways may still tell something."""
    try:
        return work()
    except Exception as error:  # whatever a compiler or a driver raises
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _rate_of_way(name: str, scale: Scale, device: str, options: dict[str, bool]) -> float | None:
    with engine_of(build(name, scale, device), scale, device, precision=HALF[device], **options) as engine:
        return rate_of(engine, photographs(8, scale.size), scale.batches[-1], scale)


def _rate_without_us(name: str, scale: Scale, device: str, way: str) -> float:
    """The same model without our kernels, streams and graphs; the images wait on the device already."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model, size = build(name, scale, device), scale.batches[-1]
    if way != "float32":
        model = model.to(memory_format=torch.channels_last).with_half_encoder(torch.float16)
    latents = torch.compile(model.encode_latents, dynamic=False) if "compile" in way else model.encode_latents
    batch = torch.from_numpy(np.resize(photographs(8, scale.size), (size, scale.size, scale.size, 3))).to(device)
    with patch("pipeline.kernels._has_triton", return_value=False), torch.no_grad():
        return size / seconds(lambda: model.quantize.indices(latents(batch)), device, rounds=5)


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
        alone = [rate_of(engine, images, size, scale) for engine in engines]  # and one after the other they capture
        found: Figures = {"engines, 1": alone[0]}
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
    size = [flag for flag, known in (("--tiny", TINY), ("--quick", QUICK)) if scale == known]
    command = [sys.executable, "-m", "tests.benchmarks.gpu", "--device", device, *size, "--worker", name]
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)
    ]
    try:
        ready = [worker.stdout.readline().strip() for worker in workers if worker.stdout]
        if ready != ["ready"] * count:
            raise RuntimeError(f"the processes must all say 'ready', got {ready}")
        for worker in workers:  # all, before the first answer is waited for
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        return [float(worker.communicate()[0]) for worker in workers]
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
