"""The command line as a user runs it, in a process of its own."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from tests.support.shared_ray import shared_ray

ROOT = Path(__file__).parent.parent.parent
ON_RAY = ("run", "demo", "export")


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without Tokenmill's own variables."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TOKENMILL_")}
    return {**kept, "TOKENMILL_QA__MIN_PSNR": "null", **changes}  # untrained models give no pictures back


def tokenmill(
    *arguments: object, timeout: float = 400, prefix: Sequence[str] = (), **env: str
) -> subprocess.CompletedProcess[str]:
    """Run `tokenmill ARGUMENTS` to its end; `prefix` stands before the command.

    Without variables of its own it joins the Ray of this session, whose actors would not see them.
    """
    command = [*prefix, sys.executable, "-m", "jobs", *map(str, arguments)]
    if arguments and arguments[0] in ON_RAY and not prefix and not env:
        env = dict(shared_ray())
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, cwd=ROOT, env=environment(**env), check=False
    )


def start(*arguments: object, prefix: Sequence[str] = (), **env: str) -> subprocess.Popen[str]:
    """Start `tokenmill ARGUMENTS` in a process group of its own; `prefix` stands before the command."""
    command = [*prefix, sys.executable, "-m", "jobs", *map(str, arguments)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=environment(**env),
        start_new_session=True,
    )


def wait_until(true: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 240) -> None:
    """Poll until `true()`; fails if the process ends or the time is over first."""
    deadline = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, f"ended too early: {process.communicate()[0]}"
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def kill_tree(process: subprocess.Popen[str]) -> None:
    """SIGKILL the driver, wait for it, and end what it leaves behind (Ray's processes end with their driver)."""
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    _, alive = psutil.wait_procs(family, timeout=20)
    for child in alive:
        child.kill()


def actors_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The actor processes that a driver started and that hold a model."""
    family = psutil.Process(process.pid).children(recursive=True)
    return [child for child in family if "RemoteWorker" in "".join(_command(child))]


def parts(output: Path) -> dict[str, str]:
    """Committed parts: file name -> sha256."""
    folder = output / "tokens"
    if not folder.exists():
        return {}
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.parquet"))}


def last_json(result: subprocess.CompletedProcess[str]) -> dict:
    """The summary that --json prints as the last line of stdout."""
    return json.loads(result.stdout.strip().splitlines()[-1])


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []
