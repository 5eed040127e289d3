"""Nodes that die or lose their link. Three hosts: the driver's, and two with an actor each (tests/support/hosts.py).

A link that is cut leaves the actor behind it at work: it still reaches the store, and publishes what the driver has
long given to somebody else. Whoever wins, each shard has exactly one part.
"""

import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.ground import FULL, LONGEST, Ground, pause
from tests.support.checker import problems
from tests.support.commands import environment, wait_until
from tests.support.faults import ALWAYS, Fault
from tests.support.hosts import HEAD, WORKERS, Hosts, Namespaces, namespaces_allowed
from tests.support.s3 import seaweedfs

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(2 * LONGEST)]
UNCHARGED = (
    "limits.max_attempts=1"  # a shard that is charged with the loss of its node is given up, and the run ends with 3
)
SLOW = 0.1  # seconds per sample: the run outlasts the loss of a node and its return
LATE = 25.0  # seconds by which one attempt is late: the rest of the run takes less, with the loss of its node
REPLACED = "is replaced"
BUCKET = "s3://tok/out"


@pytest.fixture(scope="module")
def cluster_of_hosts(undisturbed: Ground) -> Iterator[Hosts]:
    """A head, two workers, and an S3 server that they reach by another network."""
    folder = Path(tempfile.mkdtemp(prefix="hosts-"))
    hosts = (Namespaces if namespaces_allowed() else Hosts)(folder, **undisturbed.faults.environment)
    try:
        with seaweedfs(folder, hosts.store) as s3:
            hosts.environment |= s3.environment
            hosts.start(HEAD)
            hosts.start(*WORKERS)
            yield hosts
    finally:
        hosts.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def hosts(cluster_of_hosts: Hosts) -> Hosts:
    """The hosts, all of them in the cluster."""
    cluster_of_hosts.mend()
    return cluster_of_hosts


@pytest.fixture
def spread(ground: Ground, hosts: Hosts) -> Ground:
    """The ground with its runs on the hosts."""
    return replace(ground, cluster=hosts)


@pytest.mark.thorough
def test_raylet_killed_under_its_actor(spread: Ground, hosts: Hosts, tmp_path: Path, fired: Counter[str]) -> None:
    spread.faults.plan(stretch=SLOW)
    with spread.watched(tmp_path):
        process = spread.start(tmp_path, UNCHARGED)
        wait_until(lambda: all(spread.busy_actors(hosts.actors_on(host)) for host in WORKERS), process)
        hosts.kill_raylet(WORKERS[0])
        fired["SIGKILL of a raylet"] += 1
        hosts.start(WORKERS[0])
        wait_until(lambda: bool(spread.busy_actors(hosts.actors_on(WORKERS[0]))), process)
        fired["return of the node"] += 1
        said, _ = process.communicate(timeout=LONGEST)
        assert process.returncode == 0, said
    assert said.count(REPLACED) == 1, said


def test_actor_that_reaches_the_store_but_not_the_driver(
    spread: Ground, hosts: Hosts, tmp_path: Path, fired: Counter[str]
) -> None:
    late = Fault(point="before_publish", action="sleep", shard="00003-*", amount=LATE)
    seen = Fault(point="published", action="sleep", shard="00003-*", times=ALWAYS)  # only to see who comes so far
    spread.faults.plan(late, seen, stretch=0.04)
    process = spread.start(BUCKET, UNCHARGED)
    wait_until(lambda: bool(spread.faults.processes("sleep at before_publish")), process)
    (pid,) = spread.faults.processes("sleep at before_publish")
    victim = next(host for host in WORKERS if pid in [actor.pid for actor in hosts.actors_on(host)])
    hosts.cut(victim)
    said, _ = process.communicate(timeout=LONGEST)
    assert process.returncode == 0, said
    assert said.count(REPLACED) == 1, said
    wait_until(lambda: len(spread.faults.processes("sleep at published")) == 2, hosts.head)
    assert spread.faults.processes("sleep at published").count(pid) == 1, "the actor behind the cut came to its commit"
    fired.update({"cut of a link": 1, "commit of the actor behind it": 1})
    hosts.heal(victim)
    assert problems(copy(hosts, tmp_path), spread.corpus, spread.undisturbed) == []


def copy(hosts: Hosts, folder: Path) -> Path:
    """The output on S3, copied by one of the hosts."""
    code = "import s3fs, sys; s3fs.S3FileSystem().get(sys.argv[1], sys.argv[2], recursive=True)"
    command = [*hosts.prefix(HEAD), sys.executable, "-c", code, BUCKET, str(folder / "copy")]
    subprocess.run(command, env=environment(**hosts.environment), check=True)
    return folder / "copy"


if FULL:

    @pytest.mark.parametrize("seed", range(8))
    def test_link_cut_and_healed_at_random_times(
        spread: Ground, hosts: Hosts, tmp_path: Path, fired: Counter[str], seed: int
    ) -> None:
        chance = random.Random(seed)
        spread.faults.plan(stretch=SLOW)
        with spread.watched(tmp_path):
            process = spread.start(tmp_path, UNCHARGED)
            wait_until(lambda: all(spread.busy_actors(hosts.actors_on(host)) for host in WORKERS), process)
            victim = chance.choice(WORKERS)
            hosts.cut(victim)
            pause(process, chance.uniform(0.5, 10))  # it is given up after about 4
            hosts.heal(victim)
            fired["cut of a link that heals"] += 1
            said, _ = process.communicate(timeout=LONGEST)
            assert process.returncode == 0, said

    def test_head_killed(spread: Ground, hosts: Hosts, tmp_path: Path, fired: Counter[str]) -> None:
        spread.faults.plan(stretch=SLOW)
        with spread.watched(tmp_path):
            process = spread.start(tmp_path, UNCHARGED)
            wait_until(lambda: any(tmp_path.glob("tokens/*.parquet")), process)
            hosts.kill_head()
            fired["SIGKILL of the head"] += 1
            said, _ = process.communicate(timeout=LONGEST)
            assert process.returncode == 1, said
            assert "Failed to connect to GCS" in said
            hosts.mend()
            assert spread.run(tmp_path).returncode == 0
