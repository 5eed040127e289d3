"""How many pixels a core of a CPU should encode at a time: the demo's model and one of f16's geometry, in turn.

python -m tests.benchmarks.at_once [ROUNDS]
"""

import sys
from collections.abc import Sequence
from statistics import median

import numpy as np
import torch

from pipeline.engine import Engine, cpu
from pipeline.engine.calibration import measure_rate
from pipeline.model import VQModel
from tests.benchmarks.gpu.geometries import GEOMETRIES
from tests.support.commands import ROOT

SIZES = (128, 256)
IMAGES = {"demo": (1, 2, 32), "f16": (1, 2)}  # of 256 px, at a time; 32 of f16 would take gigabytes a core
SECONDS = 3.0


def main(rounds: int = 5) -> None:
    """Print images/s, and in brackets the ratio to the first, the median of those taken within a round."""
    torch.manual_seed(0)
    demo = VQModel.from_pretrained(str(ROOT / "jobs" / "assets" / "vq-f8-1024"))
    for name, model in {"demo": demo, "f16": VQModel(**GEOMETRIES["f16"]).eval()}.items():
        for size in SIZES:
            rates = compare(model, size, IMAGES[name], rounds)
            base = next(iter(rates.values()))
            said = []
            for at_once, found in rates.items():
                ratio = median(a / b for a, b in zip(found, base, strict=True))
                said.append(f"{at_once} at once {median(found):.2f} ({ratio:.2f}x)")
            print(f"{name}, {size} px, images/s: {'; '.join(said)}", flush=True)


def compare(model: VQModel, size: int, counts: Sequence[int], rounds: int) -> dict[int, list[float]]:
    """Images/s of each round, by images at once."""
    images = np.random.default_rng(0).integers(0, 256, (8, size, size, 3), np.uint8)
    engines = {}
    for pixels in (256 * 256 * count for count in counts):
        cpu.AT_ONCE_PIXELS = cpu.AT_ONCE_MOST = pixels
        engines[cpu.images_at_once(size)] = Engine(model, image_size=size)
    rates: dict[int, list[float]] = {at_once: [] for at_once in engines}
    for _ in range(rounds):
        for at_once, engine in engines.items():
            rates[at_once].append(measure_rate(engine, images, engine.first_batch, SECONDS))
    return rates


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
