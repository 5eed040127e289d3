"""Whether decode actors pay: a fast device on a node with one core, and another node with one core to decode for it.

    python -m tests.benchmarks.feeding [--images 3000] [--size 256] [--rounds 3]        as root, two cores or more

Two real Ray nodes, each pinned to a core of its own and in a network namespace of its own; the head, the driver and the
second node share a core. Fetch, tar, decode, rows, Parquet and commits are real; the device takes a millisecond for an
image and no core. The same run with and without the decode actor, in turn.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

from pipeline import driver
from pipeline.config import resolve
from pipeline.engine.cpu import Images, Result
from pipeline.messages import Identity
from pipeline.on_ray import fleet
from pipeline.shards.corpus import CorpusConfig, make_corpus
from pipeline.worker import Worker
from tests.support.commands import ROOT, environment
from tests.support.hosts import HEAD, WORKERS, Namespaces

ASSETS = ROOT / "jobs" / "assets"
SHARD_IMAGES = 250
DEVICE_SECONDS = 1e-3  # for an image


class SleepingDevice(Worker):
    """An actor whose device sleeps; its tokens are some of the pixels."""

    def load(self) -> Identity:
        identity = super().load()
        engine = self._loaded()
        side, codes = identity.spec.grid_height, identity.spec.codebook_size

        def piece(_: object, images: Images) -> Result:
            time.sleep(DEVICE_SECONDS * len(images))
            step = images.shape[1] // side
            return images[:, ::step, ::step, 0].astype(np.int64) % codes, np.ones(len(images), np.bool_)

        engine._piece = piece  # type: ignore[method-assign]
        return identity


class RemoteSleepingDevice(fleet.RemoteWorker):
    """It inside an actor's process."""

    def __init__(self, *arguments: object) -> None:
        torch.set_num_threads(1)
        super().__init__(*arguments)
        self._worker = SleepingDevice(*arguments)  # type: ignore[arg-type]


class Pinned(Namespaces):
    """Hosts with a core each; the head shares the last one's."""

    def prefix(self, host: str) -> list[str]:
        cores = sorted(os.sched_getaffinity(0))
        core = cores[0] if host == WORKERS[0] else cores[-1]
        return [*super().prefix(host), "taskset", "--cpu-list", str(core)]


def run(address: str, shards: Path, output: Path, size: int, decode_actors: int) -> None:
    """One run, as the driver's process on the head; prints images/s from the first assignment to the last part."""
    fleet.RemoteWorker = RemoteSleepingDevice  # type: ignore[misc]
    flags = {"shards": [str(shards)], "model": str(ASSETS / "vq-f8-1024"), "output": str(output)}
    settings = [
        f"image.size={size}",
        f"cluster.address={address}",
        f"cluster.decode_actors={decode_actors}",
        "cluster.actors=1",
        "cluster.cpus_per_actor=1",
        "qa.samples_per_shard=0",
    ]
    result = driver.run(resolve(settings=settings, flags=flags, environment={}))
    assert result.exit_code == 0, result.message
    print(json.dumps({"rate": result.rates.end_to_end}), flush=True)


def measure(hosts: Pinned, shards: Path, output: Path, size: int, decode_actors: int) -> float:
    """Images/s of one run."""
    command = [*hosts.prefix(HEAD), sys.executable, "-m", "tests.benchmarks.feeding", "run", hosts.address]
    command += [str(shards), str(output), str(size), str(decode_actors)]
    done = subprocess.run(
        command, env=environment(**hosts.environment), cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(json.loads(done.stdout.strip().splitlines()[-1])["rate"])


def main() -> None:
    """Print images/s without and with the decode actor, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="feeding-"))
    corpus = CorpusConfig(shards=-(-asked.images // SHARD_IMAGES), samples=SHARD_IMAGES, jpeg_only=True)
    make_corpus(ASSETS / "photos", folder / "in", corpus)
    hosts, ratios = Pinned(folder), []
    try:
        hosts.start(HEAD)
        hosts.start(*WORKERS)
        for number in range(asked.rounds):
            alone, fed = (
                measure(hosts, folder / "in", folder / f"{number}-{actors}", asked.size, actors) for actors in (0, 1)
            )
            ratios.append(fed / alone)
            print(f"alone {alone:.1f} images/s, with a decode actor {fed:.1f}: {ratios[-1]:.2f}x", flush=True)
    finally:
        hosts.stop()
    print(f"{median(ratios):.2f} times as fast (median of {asked.rounds} rounds); two cores could give 2")


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        run(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]), int(sys.argv[6]))
    else:
        main()
