"""The decode modes side by side: speed, and what each costs in pixels and tokens.

    python -m tests.benchmarks.decode [PHOTOS] [IMAGES]     the demo's photographs and 200 web-like cuts if not given

Every mode decodes the same files in turn, round after round; medians are shown. Tokens are those of the demo's model.
The whole files of PHOTOS are also decoded by both JPEG decoders.
"""

import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
from PIL.JpegImagePlugin import JpegImageFile

from pipeline.engine import Engine
from pipeline.images import ImageConfig, Prepared, configure_pillow, jpeg, prepare
from pipeline.model import VQModel
from pipeline.shards.corpus import CorpusConfig, make_corpus
from tests.support.commands import ROOT

ASSETS = ROOT / "jobs" / "assets"
PILLOW_ALONE = "exact, Pillow alone"
MODES = {
    PILLOW_ALONE: ImageConfig(),
    "exact": ImageConfig(),
    "tensor": ImageConfig(decode="tensor"),
    "fast": ImageConfig(decode="fast"),
}
ROUNDS = 3
THREADS = 2


def web_like(photos: Path, images: int) -> list[bytes]:
    """Files as they lie in shards."""
    with TemporaryDirectory() as name:
        make_corpus(photos, Path(name), CorpusConfig(shards=1, samples=images))
        with tarfile.open(next(Path(name).glob("*.tar"))) as tar:
            members = [member for member in tar if member.name.endswith((".jpg", ".png", ".webp"))]
            return [tar.extractfile(member).read() for member in members]


def decoded(files: list[bytes], config: ImageConfig) -> np.ndarray:
    """The views of all files."""
    prepared = [prepare(file, config) for file in files]
    return np.stack([view.pixels for one in prepared if isinstance(one, Prepared) for view in one.views])


def measured(files: list[bytes], config: ImageConfig) -> tuple[float, float]:
    """Images per second of CPU time on one thread, and how many times as fast `THREADS` are, by the clock."""
    clock, cpu = time.perf_counter(), time.process_time()
    decoded(files, config)
    alone, spent = time.perf_counter() - clock, time.process_time() - cpu
    with ThreadPoolExecutor(THREADS) as pool:
        clock = time.perf_counter()
        list(pool.map(prepare, files, [config] * len(files)))
    return len(files) / spent, alone / (time.perf_counter() - clock)


def rates(files: list[bytes]) -> dict[str, tuple[float, float]]:
    """The medians of `measured`, by mode."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in MODES}
    for number in range(ROUNDS):
        for name, config in MODES.items():
            with patch.object(jpeg, "agrees", lambda name=name: name != PILLOW_ALONE):
                found[name].append(measured(files, config))
        print(f"round {number}: " + ", ".join(f"{name} {found[name][-1][0]:.0f}" for name in MODES), flush=True)
    return {name: (median(rate for rate, _ in of), median(gain for _, gain in of)) for name, of in found.items()}


def tokens_of(images: np.ndarray) -> np.ndarray:
    """Tokens of the demo's model."""
    engine = Engine(VQModel.from_pretrained(ASSETS / "vq-f8-1024"), image_size=images.shape[1], batch_size=2)
    found = np.concatenate([engine.encode(images[i : i + 2]) for i in range(0, len(images), 2)])
    engine.close()
    return found


def compare_decoders(folder: Path) -> None:
    """Decode whole files both ways, at every scale."""
    opened = differing = taken = 0
    for path in sorted(folder.glob("**/*.jp*g")):
        data = path.read_bytes()
        for shrink in (1, 2, 4, 8):
            ours, reference = (JpegImageFile(BytesIO(data)) for _ in range(2))
            for image in (ours, reference):
                image.draft(image.mode, (image.width // shrink, image.height // shrink))
            loaded = jpeg.load_jpeg(ours, data)
            opened, taken = opened + 1, taken + (loaded is not ours)
            differing += not np.array_equal(np.asarray(loaded), np.asarray(reference.convert(loaded.mode)))
    print(f"{folder}: {opened} decodings at four scales, {taken} by simplejpeg, {differing} that differ from Pillow's")


def main(photos: Path = ASSETS / "photos", images: int = 200) -> None:
    """Print the table."""
    configure_pillow()
    compare_decoders(photos)
    files = web_like(photos, images)
    speeds = rates(files)
    exact = decoded(files, MODES["exact"])
    tokens = tokens_of(exact)
    print(f"\n{len(files)} files to {exact.shape[1]} pixels")
    print(
        f"{'mode':22}{'images/s a core':>16}{f'{THREADS} threads':>12}{'furthest':>10}{'mean':>9}{'tokens flipped':>16}"
    )
    for name, config in MODES.items():
        found = decoded(files, config)
        off = np.abs(found.astype(np.int16) - exact)
        flipped = float((tokens_of(found) != tokens).mean())
        rate, gain = speeds[name]
        print(f"{name:22}{rate:16.0f}{gain:11.2f}x{off.max():10}{off.mean():9.4f}{flipped:16.3%}")


if __name__ == "__main__":
    main(*(Path(sys.argv[1]), *map(int, sys.argv[2:3])) if len(sys.argv) > 1 else ())
