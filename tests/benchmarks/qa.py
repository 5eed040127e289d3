"""What QA costs: one shard tokenized with and without it, in turn; CPU seconds of the whole process.

    python -m tests.benchmarks.qa [IMAGES] [SIZE]        1,000 images at 128 pixels if not given, with the demo's model

The share depends on the images of a shard, hardly on their size: QA decodes six of them at its defaults.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from pipeline.qa.config import QaConfig
from pipeline.shards.corpus import CorpusConfig, make_corpus
from pipeline.shards.manifest import freeze
from pipeline.storage import Storage
from pipeline.tokenize_shard import Line, tokenize_shard
from pipeline.tokens.writer import OutputConfig
from tests.support.commands import ROOT
from tests.support.lines import production_line

ASSETS = ROOT / "jobs" / "assets"
ROUNDS = 3


def cpu_seconds(line: Line, shard: Path, output: Path, qa: QaConfig) -> float:
    """CPU time of tokenizing a shard into a new OUTPUT."""
    start = time.process_time()
    (frozen,) = freeze(Storage(), [str(shard)])
    tokenize_shard(frozen, replace(line, qa=qa, output=OutputConfig(url=str(output))))
    return time.process_time() - start


def main(images: int = 1000, size: int = 128) -> None:
    """Print the rounds and the share of their medians."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        make_corpus(
            ASSETS / "photos", folder / "in", CorpusConfig(shards=1, samples=images, min_side=size, max_side=512)
        )
        shard = next((folder / "in").iterdir())
        seconds: dict[str, list[float]] = {"off": [], "on": []}
        with production_line(ASSETS / "vq-f8-1024", str(folder), size=size, batch_size=32) as line:
            for number in range(ROUNDS):
                for state, qa in (("off", QaConfig(samples_per_shard=0)), ("on", QaConfig())):
                    seconds[state].append(cpu_seconds(line, shard, folder / f"{state}-{number}", qa))
                print(f"round {number}: QA off {seconds['off'][-1]:.1f} s, on {seconds['on'][-1]:.1f} s", flush=True)
    off, on = median(seconds["off"]), median(seconds["on"])
    print(f"{images:,} images at {size} px: QA costs {on / off - 1:.1%} of the CPU time")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
