"""`tokenmill run` beside the two ways in which people tokenize today: same shards, same model, same machine, in turn.

    python -m tests.benchmarks.peers.contest [--size 256 --images 500] [--rounds 3] [--json FILE]

Without --size: both goals, 500 images at 256 pixels and 1,500 at 128, with the demo's model. Where there is a GPU (or
with --gpu): 20,000 images at 256 pixels, with the geometry of f16 and random weights, 138 GFLOP an image. Every
contender is a process of its own, started anew in each round, and must give the same tokens. Ours is the command with
its defaults, QA included.

whole    seconds from start to exit
steady   images/s from the first tokens to the last byte written, as the contender itself says (ours, from the first
         assignment, which is earlier)
rest     whole less the images at the steady rate: start-up and ending
memory   the most that was seen, once a second, of the sum of PSS over the process and all its descendants: Ray's own
         processes and its object store are in it, and a page that n processes share counts 1/n in each
CPU      seconds of all those processes
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import psutil
import pyarrow.dataset as ds

from pipeline.shards.corpus import CorpusConfig, make_corpus
from tests.benchmarks.gpu.geometries import Scale, build
from tests.benchmarks.peers.common import device
from tests.support.commands import ROOT

ASSETS = ROOT / "jobs" / "assets"
SHARD_IMAGES = 250
DISTINCT_SHARDS = 8  # of larger corpora; further shards have the same bytes
SAMPLE_SECONDS = 1.0
OURS = "tokenmill run"
MEMORY_GOAL = 0.5  # of Ray Data's
NO_GATE = "qa.min_psnr=0"  # random weights do not give images back
CORES = len(os.sched_getaffinity(0))

Command = Callable[[Path, Path, Path, int], list[str]]  # (shards, model, output, size)


def ours(*settings: str) -> Command:
    """`tokenmill run` as a user types it."""

    def command(shards: Path, model: Path, output: Path, size: int) -> list[str]:
        more = [word for setting in (f"image.size={size}", *settings) for word in ("--set", setting)]
        return ["jobs", "run", "--shards", str(shards), "--model", str(model), "--output", str(output), *more, "--json"]

    return command


def peer(module: str, lanes: int, *more: str) -> Command:
    """One of the peers with so many workers or actors."""
    name = f"tests.benchmarks.peers.{module}"
    return lambda shards, model, output, size: [
        *(name, str(shards), str(model), str(output), str(size), str(lanes)),
        *more,
    ]


@dataclass(frozen=True)
class Contest:
    """Who runs against whom, and what is to be reached.

    Attributes:
        contenders: by name; the first one is ours.
        sizes: images of so many pixels, and how many of them.
        goals: by size, what must be how many times as good as that of whom; of several with the same first words the
            best counts.
        min_agreement: the fraction of tokens that must be ours: other batch sizes, layouts and precisions flip near
            ties.
    """

    contenders: Mapping[str, Command]
    sizes: Mapping[int, int]
    goals: Mapping[int, tuple[tuple[str, str, float], ...]]
    min_agreement: float


ON_CPU = Contest(
    contenders={
        OURS: ours(),
        "plain script": peer("script", CORES),
        "Ray Data, 1 actor": peer("ray_data", 1),
        f"Ray Data, {CORES} actors": peer("ray_data", CORES),
        f"{OURS}, QA off": ours("qa.samples_per_shard=0"),
    },
    sizes={256: 500, 128: 1500},
    goals={
        256: (("steady", "plain script", 1.7), ("steady", "Ray Data", 1.7)),
        128: (("whole", "plain script", 1.3), ("whole", "Ray Data", 1.3)),
    },
    min_agreement=0.999,
)
ON_GPU = Contest(
    contenders={
        OURS: ours(NO_GATE),
        "plain script": peer("script", CORES),
        "script with every trick": peer("script", CORES, "tricks"),
        "Ray Data, 1 actor": peer("ray_data", 1),
        f"{OURS}, QA off": ours("qa.samples_per_shard=0"),
    },
    sizes={256: 20_000},
    goals={
        256: (("steady", "plain script", 5.0), ("steady", "Ray Data", 5.0), ("steady", "script with every trick", 1.5)),
    },
    min_agreement=0.95,
)


@dataclass(frozen=True)
class Figures:
    """One contender in one round; see the module for the units."""

    whole: float
    steady: float
    rest: float
    memory: float
    cpu: float
    agreement: float


class Watch:
    """Memory and CPU time of a process and its descendants, seen from outside."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._cpu: dict[tuple[int, float], float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.peak = 0

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def cpu(self) -> float:
        """Seconds, as last seen."""
        return sum(self._cpu.values())

    def _look(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            held = 0
            for process in self._family():
                try:
                    times = process.cpu_times()
                    held += process.memory_full_info().pss
                except psutil.Error:  # it has ended meanwhile
                    continue
                self._cpu[process.pid, process.create_time()] = times.user + times.system
            self.peak = max(self.peak, held)

    def _family(self) -> list[psutil.Process]:
        try:
            return [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def environment() -> dict[str, str]:
    """Without Tokenmill's variables; Ray's workers weigh as much as any process, where others use the machine too."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TOKENMILL_")}
    return {**kept, "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONWARNINGS": "ignore"}


def race(
    command: Sequence[str], output: Path, tokens: np.ndarray | None, min_agreement: float
) -> tuple[Figures, np.ndarray]:
    """Run one contender; returns its figures, and its tokens in the order of the keys."""
    begun = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with Watch(process.pid) as watch:
        out, errors = process.communicate()
    whole = time.monotonic() - begun
    assert process.returncode == 0, errors
    said, found = json.loads(out.strip().splitlines()[-1]), read(output)
    steady = said["images_per_second"]["end_to_end"] if "images_per_second" in said else said["steady"]
    agreement = 1.0 if tokens is None else float((tokens == found).mean())
    assert agreement >= min_agreement, f"{command}: only {agreement:.2%} of the tokens are ours"
    return Figures(whole, steady, whole - len(found) / steady, watch.peak / 1e6, watch.cpu, agreement), found


def read(output: Path) -> np.ndarray:
    """Tokens [n, h * w] in the order of the keys."""
    folder = output / "tokens" if (output / "tokens").is_dir() else output
    table = ds.dataset(folder, format="parquet").to_table(columns=["key", "tokens"]).sort_by("key")
    return np.stack(table["tokens"].to_numpy())


def run(contest: Contest, size: int, images: int, rounds: int, model: Path) -> dict[str, list[Figures]]:
    """All contenders in turn, again and again."""
    found: dict[str, list[Figures]] = {name: [] for name in contest.contenders}
    with TemporaryDirectory() as name:
        folder, tokens = Path(name), None
        write_corpus(folder / "in", images)
        for number in range(rounds):
            for contender, command in contest.contenders.items():
                output = folder / f"{number}-{contender}"
                words = command(folder / "in", model, output, size)
                figures, seen = race(words, output, tokens, contest.min_agreement)
                tokens = seen if tokens is None else tokens
                found[contender].append(figures)
                print(f"{size} px, round {number + 1}: {contender}: {show(figures)}", file=sys.stderr, flush=True)
    return found


def write_corpus(folder: Path, images: int) -> None:
    """At least so many photographs in shards of 250."""
    shards = -(-images // SHARD_IMAGES)
    distinct = min(shards, DISTINCT_SHARDS)
    made = make_corpus(
        ASSETS / "photos",
        folder,
        CorpusConfig(shards=distinct, samples=min(images, SHARD_IMAGES), jpeg_only=True),
    )
    for number in range(distinct, shards):
        (folder / f"again-{number:05d}.tar").hardlink_to(made[number % distinct])


def write_f16(folder: Path) -> Path:
    """A model of the geometry of f16, with random weights, whose codes are latents of its own."""
    model = build("f16", Scale(), "cpu")
    model.save_pretrained(folder)
    return folder


def show(figures: Figures) -> str:
    """One line."""
    return (
        f"whole {figures.whole:.1f} s, steady {figures.steady:.1f} images/s, rest {figures.rest:.1f} s, "
        f"{figures.memory:,.0f} MB, {figures.cpu:.1f} s of CPU, {figures.agreement:.3%} of the tokens equal"
    )


def ratios(found: Mapping[str, Sequence[Figures]], what: str) -> dict[str, float]:
    """How many times as good ours is as each other contender: the median over rounds, each taken within a round."""
    smaller_is_better = what != "steady"

    def ratio(mine: Figures, other: Figures) -> float:
        a, b = getattr(mine, what), getattr(other, what)
        return b / a if smaller_is_better else a / b

    return {
        name: median(ratio(*pair) for pair in zip(found[OURS], figures, strict=True))
        for name, figures in found.items()
        if name != OURS
    }


def table(size: int, images: int, found: Mapping[str, Sequence[Figures]]) -> str:
    """Medians, and in brackets how many times as good ours is."""
    columns = ("whole", "steady", "rest", "memory", "cpu")
    better = {what: ratios(found, what) for what in columns}
    lines = [
        f"\n{images:,} images at {size} px; medians, in brackets how many times as good `{OURS}` is:\n",
        "| | whole (s) | steady (images/s) | rest (s) | memory (MB) | CPU (s) |",
        "|---|---|---|---|---|---|",
    ]
    for name, figures in found.items():
        cells = []
        for what in columns:
            value = f"{median(getattr(one, what) for one in figures):,.1f}"
            cells.append(value if name == OURS else f"{value} ({better[what][name]:.2f}x)")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def verdicts(contest: Contest, size: int, found: Mapping[str, Sequence[Figures]]) -> list[str]:
    """Each goal, and whether it was reached. Of Ray Data's settings the best counts."""
    lines = []
    for what, whom, goal in contest.goals.get(size, ()):
        value = min(ratio for name, ratio in ratios(found, what).items() if name.startswith(whom))
        lines.append(f"{what} against {whom}: {value:.2f}x, goal {goal}x: {mark(value >= goal)}")
    memory = max(1 / ratio for name, ratio in ratios(found, "memory").items() if name.startswith("Ray Data"))
    lines.append(
        f"memory of Ray Data's leanest: {memory:.0%}, goal at most {MEMORY_GOAL:.0%}: {mark(memory <= MEMORY_GOAL)}"
    )
    return lines


def mark(reached: bool) -> str:
    return "reached" if reached else "MISSED"


def main() -> None:
    """Print tables and verdicts; write all figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gpu", action="store_true", help="the contest for a GPU, also where there is none")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    on_gpu = asked.gpu or device() == "cuda"
    contest = ON_GPU if on_gpu else ON_CPU
    sizes = {asked.size: asked.images} if asked.size else contest.sizes
    load, document = os.getloadavg()[0], {}
    with TemporaryDirectory() as folder:
        model = write_f16(Path(folder)) if on_gpu else ASSETS / "vq-f8-1024"
        for size, images in sizes.items():
            found = run(contest, size, images, asked.rounds, model)
            print(table(size, images, found), *verdicts(contest, size, found), sep="\n", flush=True)
            document[str(size)] = {name: [asdict(one) for one in figures] for name, figures in found.items()}
    print(f"load average at the start: {load:.1f} on {CORES} cores")
    if asked.json:
        asked.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
