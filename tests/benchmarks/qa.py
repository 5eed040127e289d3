"""What QA costs: one shard tokenized with and without it, in turn; CPU seconds of the whole process.

    python -m tests.benchmarks.qa [IMAGES] [SIZE]        1,000 images at 128 pixels if not given, with the demo's model

Other work on the machine makes a round some percent slower or faster, more than QA costs. So what QA does on its own,
after the last image, is timed as well: looking at the part and publishing the evidence. The share depends on the images
of a shard, hardly on their size: QA decodes six of them at its defaults.
"""

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from pipeline import tokenize_shard as heart
from pipeline.qa.config import QaConfig
from pipeline.shards.corpus import CorpusConfig, make_corpus
from pipeline.shards.manifest import freeze
from pipeline.storage import Storage
from pipeline.tokens.writer import OutputConfig
from tests.support.commands import ROOT
from tests.support.lines import production_line

ASSETS = ROOT / "jobs" / "assets"
ROUNDS = 3


@dataclass
class Timed:
    """A function, and the CPU seconds of the whole process while it was at work."""

    function: Any
    seconds: float = 0.0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        start = time.process_time()
        try:
            return self.function(*arguments, **options)
        finally:
            self.seconds += time.process_time() - start


def main(images: int = 1000, size: int = 128) -> None:
    """Print the rounds, and the shares of their medians."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        photos = CorpusConfig(shards=1, samples=images, min_side=size, max_side=512)
        (path,) = make_corpus(ASSETS / "photos", folder / "in", photos)
        (shard,) = freeze(Storage(), [str(path)])
        seconds: dict[str, list[float]] = {"off": [], "on": [], "alone": []}
        with production_line(ASSETS / "vq-f8-1024", str(folder), size=size, batch_size=32) as line:
            for number in range(ROUNDS):
                for state, qa in (("off", QaConfig(samples_per_shard=0)), ("on", QaConfig())):
                    output = OutputConfig(url=str(folder / f"{state}-{number}"))
                    whole = Timed(heart.tokenize_shard)
                    with patch.object(heart, "_inspected", Timed(heart._inspected)) as inspected:
                        whole(shard, replace(line, qa=qa, output=output))
                    seconds[state].append(whole.seconds)
                seconds["alone"].append(inspected.seconds)
                found = {state: round(some[-1], 2) for state, some in seconds.items()}
                print(f"round {number}: CPU seconds with QA {found['on']}, without {found['off']}", end="; ")
                print(f"QA after the last image {found['alone']}", flush=True)
    off, on, alone = (median(some) for some in seconds.values())
    print(
        f"{images:,} images at {size} px: with QA {on / off - 1:+.1%} of the CPU time; QA on its own {alone / off:.1%}"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
