"""16 attempts at one shard reach the commit at the same moment: one part, fifteen losers, no litter."""

import multiprocessing
import threading
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import tokenize_shard as heart
from pipeline.commit import Outcome, commit
from pipeline.shards.manifest import Shard, freeze
from pipeline.storage import Storage
from tests.chaos.ground import FULL
from tests.support.checker import Part, source_keys
from tests.support.corpora import write_corpus
from tests.support.lines import production_line

pytestmark = pytest.mark.chaos
RACERS, PROCESSES = 16, 4
SHARDS = 10 if FULL else 2
SECONDS = 120.0


@dataclass(frozen=True)
class Race:
    """Attempts at one shard: where, and how many in each process."""

    shard: Shard
    model: Path
    output: Path
    scratch: Path
    threads: int

    def run(self, gate: Any) -> list[Outcome]:
        """This process's attempts; `gate` is a barrier that all attempts pass together, just before they commit."""

        def together(*args: Any, **kwargs: Any) -> Outcome:
            gate.wait(SECONDS)
            return commit(*args, **kwargs)

        with pytest.MonkeyPatch.context() as patch, production_line(self.model, str(self.output)) as line:
            patch.setattr(heart, "commit", together)
            patch.setattr("tempfile.tempdir", str(self.scratch))
            with ThreadPoolExecutor(self.threads) as pool:
                attempts = [pool.submit(heart.tokenize_shard, self.shard, line) for _ in range(self.threads)]
                return [attempt.result().outcome for attempt in attempts]


def settle(race: Race, outcomes: list[Outcome], fired: Counter[str]) -> None:
    """One winner; its part is alone and whole."""
    fired["attempts at one moment"] += len(outcomes)
    assert Counter(outcomes) == {Outcome.DONE: 1, Outcome.LOST: RACERS - 1}
    ours = [path for path in (race.output / "tokens").iterdir() if race.shard.id in path.name]
    assert [path.name for path in ours] == [f"{race.shard.id}.parquet"]
    keys = source_keys(Path(race.shard.url.removeprefix("file://")))
    assert [row["key"] for row in Part.read(ours[0]).rows] == keys
    assert not list(race.scratch.iterdir())


@pytest.fixture
def races(tmp_path: Path, tiny_model: Path) -> list[Race]:
    """One race for each shard of a small corpus."""
    corpus, scratch = write_corpus(tmp_path / "in", shards=SHARDS, samples=20), tmp_path / "scratch"
    scratch.mkdir()
    shards = freeze(Storage(), [str(corpus)])
    return [Race(shard, tiny_model, tmp_path / "out", scratch, RACERS) for shard in shards]


def test_attempts_in_sixteen_threads(races: list[Race], fired: Counter[str]) -> None:
    for race in races:
        settle(race, race.run(threading.Barrier(RACERS)), fired)


def test_attempts_in_four_processes(races: list[Race], fired: Counter[str]) -> None:
    context = multiprocessing.get_context("spawn")
    one_thread = {"initializer": torch.set_num_threads, "initargs": (1,)}  # four processes share the cores
    with context.Manager() as manager, ProcessPoolExecutor(PROCESSES, context, **one_thread) as pool:
        for one in races:
            race = Race(one.shard, one.model, one.output, one.scratch, RACERS // PROCESSES)
            gate = manager.Barrier(RACERS)
            results = [pool.submit(race.run, gate) for _ in range(PROCESSES)]
            settle(race, [outcome for result in results for outcome in result.result(SECONDS)], fired)
