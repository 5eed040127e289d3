"""A Ray cluster on loopback, started by the commands of a launcher file: a head without CPUs, and a worker."""

import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

from tests.support.commands import ROOT, environment, wait_until
from tests.support.servers import free_ports

LAUNCHER = ROOT / "infra" / "aws" / "cluster.yaml"
WORKER_CPUS = 4


@dataclass(frozen=True)
class Launched:
    """A cluster.

    Attributes:
        dashboard: its URL.
        environment: of every process that speaks to it: the token.
    """

    dashboard: str
    environment: dict[str, str]


@contextmanager
def launched(folder: Path, extra: dict[str, str]) -> Iterator[Launched]:
    """Start head and worker as the launcher does, but on loopback, on free ports, and with `extra` in the environment.

    Args:
        folder: for Ray's files; short, as sockets are made below it.
        extra: environment of Ray's processes.
    """
    folder.mkdir()
    port, page, client = free_ports(3)
    token = {"RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    path = f"{ROOT / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    env = environment(**token, **extra, PATH=path, RAY_HEAD_IP="127.0.0.1")
    file = yaml.safe_load(LAUNCHER.read_text())
    head, worker = (_start_of(file[f"{who}_start_ray_commands"]) for who in ("head", "worker"))
    head = head.replace(
        "--autoscaling-config=~/ray_bootstrap_config.yaml", f"--temp-dir={folder} --ray-client-server-port={client}"
    )
    head, worker = (text.replace("6379", str(port)).replace("8265", str(page)) for text in (head, worker))
    with ExitStack() as stack:
        stack.enter_context(_running(head, folder / "head.log", env))
        stack.enter_context(_running(f"{worker} --num-cpus={WORKER_CPUS}", folder / "worker.log", env))
        yield Launched(f"http://127.0.0.1:{page}", token)


def _start_of(commands: list[str]) -> str:
    [command] = [line for line in commands if "ray start" in line]
    return f"{command} --block --node-ip-address=127.0.0.1"


@contextmanager
def _running(command: str, log: Path, env: dict[str, str]) -> Iterator[None]:
    """One node, until the end of the block: then none of its processes is left."""
    with log.open("w") as sink:
        node = subprocess.Popen(["bash", "-c", f"exec env {command}"], stdout=sink, stderr=sink, text=True, env=env)
    try:
        wait_until(lambda: "Ray runtime started" in log.read_text() or node.poll() is not None, node)
        assert node.poll() is None, log.read_text()[-3000:]
        yield
    finally:
        family = psutil.Process(node.pid).children(recursive=True) if node.poll() is None else []
        for process in (node, *family):  # asked politely, a raylet drains for half a minute
            process.kill()
        node.wait()
        psutil.wait_procs(family, timeout=30)
