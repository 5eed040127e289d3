"""`tokenmill run` beside the two ways in which people tokenize today: same shards, same model, same machine, in turn.

    python -m tests.benchmarks.peers.contest [--size 256 --images 500] [--rounds 3] [--json FILE]

Without --size: both goals, 500 images at 256 pixels and 1,500 at 128. Every contender is a process of its own, started
anew in each round, and must give the same tokens. Ours is the command with its defaults, QA included.

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
from tests.support.commands import ROOT

ASSETS = ROOT / "jobs" / "assets"
MODEL = ASSETS / "vq-f8-1024"
SHARD_IMAGES = 250
SAMPLE_SECONDS = 1.0
OURS = "tokenmill run"
GOALS = {256: ("steady", 1.7), 128: ("whole", 1.3)}  # at least so many times as fast as each peer
MEMORY_GOAL = 0.5  # of Ray Data's
MIN_AGREEMENT = 0.999  # other batch sizes and layouts flip a few near ties

Command = Callable[[Path, Path, int], list[str]]  # (shards, output, size)


def ours(*settings: str) -> Command:
    """`tokenmill run` as a user types it."""

    def command(shards: Path, output: Path, size: int) -> list[str]:
        more = [word for setting in (f"image.size={size}", *settings) for word in ("--set", setting)]
        return ["jobs", "run", "--shards", str(shards), "--model", str(MODEL), "--output", str(output), *more, "--json"]

    return command


def peer(module: str, lanes: int) -> Command:
    """One of the peers with so many workers or actors."""
    name = f"tests.benchmarks.peers.{module}"
    return lambda shards, output, size: [name, str(shards), str(MODEL), str(output), str(size), str(lanes)]


CORES = len(os.sched_getaffinity(0))
CONTENDERS: Mapping[str, Command] = {
    OURS: ours(),
    "plain script": peer("script", CORES),
    "Ray Data, 1 actor": peer("ray_data", 1),
    f"Ray Data, {CORES} actors": peer("ray_data", CORES),
    f"{OURS}, QA off": ours("qa.samples_per_shard=0"),
}


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


def race(command: Sequence[str], output: Path, tokens: np.ndarray | None) -> tuple[Figures, np.ndarray]:
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
    assert agreement >= MIN_AGREEMENT, f"{command}: only {agreement:.2%} of the tokens are ours"
    return Figures(whole, steady, whole - len(found) / steady, watch.peak / 1e6, watch.cpu, agreement), found


def read(output: Path) -> np.ndarray:
    """Tokens [n, h * w] in the order of the keys."""
    folder = output / "tokens" if (output / "tokens").is_dir() else output
    table = ds.dataset(folder, format="parquet").to_table(columns=["key", "tokens"]).sort_by("key")
    return np.stack(table["tokens"].to_numpy())


def contest(size: int, images: int, rounds: int) -> dict[str, list[Figures]]:
    """All contenders in turn, again and again."""
    found: dict[str, list[Figures]] = {name: [] for name in CONTENDERS}
    with TemporaryDirectory() as name:
        folder, tokens = Path(name), None
        corpus = CorpusConfig(shards=-(-images // SHARD_IMAGES), samples=min(images, SHARD_IMAGES), jpeg_only=True)
        make_corpus(ASSETS / "photos", folder / "in", corpus)
        for number in range(rounds):
            for contender, command in CONTENDERS.items():
                output = folder / f"{number}-{contender}"
                figures, seen = race(command(folder / "in", output, size), output, tokens)
                tokens = seen if tokens is None else tokens
                found[contender].append(figures)
                print(f"{size} px, round {number + 1}: {contender}: {show(figures)}", file=sys.stderr, flush=True)
    return found


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


def verdicts(size: int, found: Mapping[str, Sequence[Figures]]) -> list[str]:
    """Each goal, and whether it was reached. Of Ray Data's settings the best counts."""
    lines = []
    ray = [name for name in found if name.startswith("Ray Data")]
    if size in GOALS:
        what, goal = GOALS[size]
        speed = ratios(found, what)
        rivals = {"plain script": speed["plain script"], "Ray Data": min(speed[name] for name in ray)}
        lines += [
            f"{what} against {name}: {value:.2f}x, goal {goal}x: {mark(value >= goal)}"
            for name, value in rivals.items()
        ]
    memory = max(1 / ratio for name, ratio in ratios(found, "memory").items() if name in ray)
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
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    sizes = [(asked.size, asked.images)] if asked.size else [(256, 500), (128, 1500)]
    load, document = os.getloadavg()[0], {}
    for size, images in sizes:
        found = contest(size, images, asked.rounds)
        print(table(size, images, found), *verdicts(size, found), sep="\n", flush=True)
        document[str(size)] = {name: [asdict(one) for one in figures] for name, figures in found.items()}
    print(f"load average at the start: {load:.1f} on {CORES} cores")
    if asked.json:
        asked.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
