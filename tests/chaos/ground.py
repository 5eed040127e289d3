"""What the cases stand on: one Ray cluster for many runs, a corpus, an undisturbed run of it, and how to start more."""

import os
import random
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from tests.support.checker import Watcher, digests, problems
from tests.support.commands import actors_of, environment, start, tokenmill, wait_until
from tests.support.faults import Faults
from tests.support.hosts import HEAD
from tests.support.servers import free_ports

STRETCH = 0.02  # seconds per sample: a run then takes seconds, and a kill hits the middle of the work
LONGEST = 240  # seconds that any single run may take
ONE_ACTOR = "cluster.actors=1"  # where the driver is what matters: half the start
SCALE = os.environ.get("CHAOS", "short")
FULL = SCALE == "full"


class Cluster(Protocol):
    """Where runs find their actors. Its processes read the plan of the `Faults` they were started with.

    Attributes:
        address: of the cluster.
        environment: of every process that joins it.
        head: `ray start` of the head, under which its processes are.
    """

    address: str
    environment: dict[str, str]
    head: subprocess.Popen[str]

    def actors(self) -> list[psutil.Process]:
        """The actors on it."""

    def prefix(self, host: str) -> list[str]:
        """What stands before a command that is to run on the host."""


class OneNode:
    """A Ray cluster of one node on loopback.

    Attributes:
        dashboard: URL of its dashboard, if it has one.
    """

    def __init__(self, folder: Path, faults: Faults, *, dashboard: bool = False) -> None:
        port, page = free_ports(2)
        self.address = f"127.0.0.1:{port}"
        self.dashboard = f"http://127.0.0.1:{page}" if dashboard else None
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"]
        command += ["--node-ip-address=127.0.0.1", "--num-cpus=16", f"--include-dashboard={str(dashboard).lower()}"]
        command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={page}"]
        command += [f"--object-store-memory={100 << 20}", f"--temp-dir={folder}"]
        log = folder / "head.log"
        with log.open("w") as sink:
            env = environment(**self.environment, **faults.environment)
            self.head = subprocess.Popen(command, stdout=sink, stderr=sink, text=True, env=env, start_new_session=True)
        wait_until(lambda: "Ray runtime started" in log.read_text(), self.head, 60)

    def actors(self) -> list[psutil.Process]:
        return actors_of(self.head)

    def prefix(self, _host: str) -> list[str]:
        return []

    def stop(self) -> None:
        """End every process of the cluster."""
        family = psutil.Process(self.head.pid).children(recursive=True)
        self.head.terminate()
        self.head.wait(timeout=60)
        for process in psutil.wait_procs(family, timeout=10)[1]:
            process.kill()


@dataclass(frozen=True)
class Ground:
    """One corpus, what an undisturbed run makes of it, and the cluster on which disturbed ones run."""

    cluster: Cluster
    faults: Faults
    corpus: Path
    model: Path
    undisturbed: dict[str, str]

    def arguments(self, output: Path | str, *more: object) -> list[object]:
        """`run` into `output` by two actors of the cluster; `more` are flags, or settings `a.b=value`."""
        settings = ["image.size=32", f"cluster.address={self.cluster.address}", "cluster.actors=2"]
        settings += ["cluster.cpus_per_actor=1", "limits.backoff_seconds=0.05"]
        flags = [word for setting in settings for word in ("--set", setting)]
        return ["run", "--shards", self.corpus, "--model", self.model, "--output", output, *flags, *_as_flags(more)]

    def start(self, output: Path | str, *more: object) -> subprocess.Popen[str]:
        """Start a run."""
        return start(*self.arguments(output, *more), prefix=self.cluster.prefix(HEAD), **self.environment)

    def run(self, output: Path, *more: object) -> subprocess.CompletedProcess[str]:
        """A run to its end."""
        return tokenmill(
            *self.arguments(output, *more), timeout=LONGEST, prefix=self.cluster.prefix(HEAD), **self.environment
        )

    @property
    def environment(self) -> dict[str, str]:
        """Of every run on the cluster."""
        return {**self.cluster.environment, **self.faults.environment}

    def calm(self) -> None:
        """Plan no fault, and wait until no actor of an earlier run is left, so that faults strike the next run only."""
        wait_until(lambda: not self.cluster.actors(), self.cluster.head, 60)
        self.faults.plan()

    def busy_actors(self, among: list[psutil.Process] | None = None) -> list[psutil.Process]:
        """Those that have a shard open, among all actors of the cluster or the given ones, by their process ids."""
        actors = self.cluster.actors() if among is None else among
        return sorted((actor for actor in actors if self._reads(actor)), key=lambda one: one.pid)

    def kill_busy_actor(self, process: subprocess.Popen[str], chance: random.Random) -> None:
        """SIGKILL one of the actors that have a shard open, after a pause of random length."""
        busy: list[psutil.Process] = []

        def found() -> bool:
            busy[:] = self.busy_actors()
            return bool(busy)

        pause(process, chance.uniform(0, 0.8))
        wait_until(found, process)
        victim = chance.choice(busy)
        victim.kill()
        victim.wait(timeout=30)

    @contextmanager
    def watched(self, output: Path, *, differ: int = 0) -> Iterator[Watcher]:
        """Watch `output` during all that is done to it, and recount it in the end: every shard must be committed."""
        with Watcher(output) as watcher:
            yield watcher
        assert watcher.looks > 1
        assert watcher.violations == []
        assert problems(output, self.corpus, self.undisturbed, differ=differ) == []

    def _reads(self, actor: psutil.Process) -> bool:
        try:
            return any(Path(file.path).parent == self.corpus for file in actor.open_files())
        except psutil.NoSuchProcess:
            return False


def undisturbed_run(cluster: Cluster, faults: Faults, corpus: Path, model: Path, output: Path) -> Ground:
    """Tokenize a corpus once with no fault at all, and stand on the result."""
    bare = Ground(cluster, faults, corpus, model, {})
    faults.plan()
    result = bare.run(output, ONE_ACTOR)
    assert result.returncode == 0, result.stderr
    ground = Ground(cluster, faults, corpus, model, digests(output))
    assert problems(output, corpus, ground.undisturbed) == []
    return ground


def pause(process: subprocess.Popen[str], seconds: float) -> None:
    """Let `seconds` pass, or less if the process ends."""
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return


def _as_flags(more: tuple[object, ...]) -> list[object]:
    flags: list[object] = []
    for word in more:
        is_setting = isinstance(word, str) and "=" in word and not word.startswith("-")
        flags += ["--set", word] if is_setting else [word]
    return flags
