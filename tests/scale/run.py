"""Runs the driver over N empty shards with stand-in actors, and prints what it cost as JSON.

python -m tests.scale.run N FOLDER
"""

import json
import sys
import time
from pathlib import Path

from pipeline import driver
from pipeline.config import resolve
from pipeline.on_ray import fleet
from pipeline.output import Output
from pipeline.progress import Plain, Snapshot
from pipeline.resume import what_is_left
from pipeline.shards.manifest import freeze
from pipeline.storage import Storage
from tests.support.memory import peak_bytes
from tests.support.standin import RemoteStandIn


class Timed(Plain):
    """Remembers when how many shards were done."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[float, int]] = []

    def show(self, snapshot: Snapshot) -> None:
        self.seen.append((time.monotonic(), snapshot.shards_done))
        super().show(snapshot)


def prepare(folder: Path, count: int) -> None:
    """`count` one-byte shards, and a script that has every one of them become a tiny part."""
    (folder / "in").mkdir(parents=True)
    for number in range(count):
        (folder / "in" / f"{number:06d}.tar").write_bytes(b"x")
    (folder / "script.json").write_text('{"quiet": []}')


def thirds(seen: list[tuple[float, int]]) -> tuple[float, float]:
    """Seconds per shard in the first and in the last third of the run."""
    moving = [(at, done) for at, done in seen if done]
    first, last = moving[: max(2, len(moving) // 3)], moving[-max(2, len(moving) // 3) :]
    return tuple((part[-1][0] - part[0][0]) / max(1, part[-1][1] - part[0][1]) for part in (first, last))


def main(count: int, folder: Path) -> None:
    """Plan, run, list again; every figure is printed."""
    prepare(folder, count)
    fleet.RemoteWorker = RemoteStandIn  # type: ignore[assignment,misc]
    flags = {"shards": [f"{folder}/in/{{000000..{count - 1:06d}}}.tar"], "model": "none", "output": str(folder / "out")}
    config = resolve(
        flags={**flags, "cluster.actors": "2", "cluster.shards_in_flight": 8, "qa.samples_per_shard": 0}, environment={}
    )
    began = time.monotonic()
    shards = freeze(Storage(), config.shards)
    planned = time.monotonic()
    progress = Timed()
    result = driver.run(config, progress)
    ended = time.monotonic()
    left = what_is_left(Output(Storage(), config.output.url), shards, retry_quarantined=False, retry_rejects=False)
    listed = time.monotonic()
    early, late = thirds(progress.seen)
    figures = {
        "shards": count,
        "exit_code": int(result.exit_code),
        "committed": result.summary["shards"]["committed"],
        "left": len(left.pending),
        "plan_seconds": round(planned - began, 2),
        "run_seconds": round(ended - planned, 2),
        "resume_seconds": round(listed - ended, 2),
        "driver_mib": peak_bytes() >> 20,
        "ms_per_shard_first_third": round(1000 * early, 3),
        "ms_per_shard_last_third": round(1000 * late, 3),
    }
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
