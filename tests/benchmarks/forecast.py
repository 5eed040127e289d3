"""`tokenmill plan` beside the run that it forecasts, and the run's own forecast beside its truth.

    python -m tests.benchmarks.forecast [--size 128] [--shards 12] [--rounds 3]

In each round a plan, then a run of the same command: the forecast's share of what came, 100 % being perfect. Time is
that without start-up, of one actor on this machine.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.shards.corpus import CorpusConfig, make_corpus
from tests.benchmarks.peers.contest import environment
from tests.support.commands import ROOT

ASSETS = ROOT / "jobs" / "assets"
SHARD_IMAGES = 250
GOAL = 0.15  # what a forecast may miss by


def tokenmill(*arguments: object) -> dict[str, Any]:
    """The last line that a command prints, which is JSON."""
    command = [sys.executable, "-m", "jobs", *map(str, arguments), "--json"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def compare(shards: Path, output: Path, size: int) -> dict[str, float]:
    """The forecasts as shares of the truth."""
    job = ["--shards", shards, "--model", ASSETS / "vq-f8-1024", "--set", f"image.size={size}"]
    planned = tokenmill("plan", *job)
    came = tokenmill("run", *job, "--output", output)
    [run] = json.loads((output / "report" / "report.json").read_text())["runs"]
    seconds = came["rows"] / came["images_per_second"]["end_to_end"]
    return {
        "plan: images": planned["images"] / came["samples"],
        "plan: output bytes": planned["output_bytes"] / came["bytes"],
        "plan: time": planned["seconds"] / seconds,
        "run's own: rows": run["speed"]["expected_rows"] / came["rows"],
        "run's own: time": run["speed"]["expected_seconds"] / seconds,
    }


def verdicts(rounds: list[Mapping[str, float]]) -> list[str]:
    """Each forecast: all rounds, and whether their median is near enough."""
    lines = []
    for name in rounds[0]:
        found = [one[name] for one in rounds]
        reached = "within" if abs(median(found) - 1) <= GOAL else "OUTSIDE"
        lines.append(f"{name}: {' '.join(f'{value:.1%}' for value in found)} of the truth: {reached} {GOAL:.0%}")
    return lines


def main() -> None:
    """Print the verdicts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--shards", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with TemporaryDirectory() as name:
        folder, found = Path(name), []
        make_corpus(ASSETS / "photos", folder / "in", CorpusConfig(shards=asked.shards, samples=SHARD_IMAGES))
        for number in range(asked.rounds):
            found.append(compare(folder / "in", folder / f"out-{number}", asked.size))
            print(f"round {number + 1}: {json.dumps(found[-1])}", file=sys.stderr, flush=True)
    print(f"{asked.shards} shards of {SHARD_IMAGES} images at {asked.size} px", *verdicts(found), sep="\n")


if __name__ == "__main__":
    main()
