"""What everything that is not the model costs on several nodes: 1, 2 and 3 real Ray nodes, devices that only sleep.

    python -m tests.benchmarks.nodes [SHARDS_PER_NODE]        as root: each node is a network namespace of this machine

Each actor holds one device, which takes a second for a shard and no core; two shards are in flight. So N nodes do N
shards a second at best, and what is missing from that are the driver, Ray, the schedule, the writing and the commits.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from pipeline import driver
from pipeline.config import resolve
from pipeline.messages import ShardReport, Task
from pipeline.on_ray import fleet
from pipeline.schedule import Failure
from tests.scale.run import prepare
from tests.support.commands import environment
from tests.support.hosts import HEAD, SPARE, WORKERS, Hosts, Namespaces, namespaces_allowed
from tests.support.standin import RemoteStandIn, StandIn

DEVICE_SECONDS = 1.0  # for a shard
NODES = (*WORKERS, SPARE)


class Sleeper(StandIn):
    """A stand-in with a device that sleeps."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self._device = threading.Lock()

    def tokenize(self, task: Task) -> ShardReport | Failure:
        with self._device:
            time.sleep(DEVICE_SECONDS)
        return super().tokenize(task)


class RemoteSleeper(RemoteStandIn):
    """`pipeline.on_ray.cluster.RemoteWorker` around it."""

    def __init__(self, *arguments: object) -> None:
        self._worker = Sleeper(*arguments)


def run(address: str, shards: int, actors: int, folder: Path) -> None:
    """One run, as the driver's process on the head; prints shards per second from the first to the last."""
    prepare(folder, shards)
    fleet.RemoteWorker = RemoteSleeper  # type: ignore[assignment,misc]
    flags = {"shards": [f"{folder}/in"], "model": "none", "output": str(folder / "out"), "cluster.address": address}
    settings = ["qa.samples_per_shard=0", "cluster.cpus_per_actor=1", f"cluster.actors={actors}"]
    result = driver.run(resolve(settings=settings, flags=flags, environment={}))
    assert result.summary["shards"]["committed"] == shards, result.message
    print(json.dumps({"rate": result.rates.end_to_end}), flush=True)


def main(shards_per_node: int = 60) -> None:
    """Print the efficiency on 1, 2 and 3 nodes."""
    folder = Path(tempfile.mkdtemp(prefix="nodes-"))
    hosts = (Namespaces if namespaces_allowed() else Hosts)(folder)
    try:
        hosts.start(HEAD)
        for number, node in enumerate(NODES, 1):
            hosts.start(node)
            command = [*hosts.prefix(HEAD), sys.executable, "-m", "tests.benchmarks.nodes", "run", hosts.address]
            command += [str(number * shards_per_node), str(number), str(folder / f"run-{number}")]
            env = environment(**hosts.environment)
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr)
            rate = json.loads(done.stdout.strip().splitlines()[-1])["rate"]
            print(f"{number} nodes: {rate:.3f} shards/s, efficiency {rate * DEVICE_SECONDS / number:.1%}", flush=True)
    finally:
        hosts.stop()


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        run(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
    else:
        main(*map(int, sys.argv[1:]))
