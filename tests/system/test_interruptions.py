"""Death in the middle: of the driver, of an actor, by Ctrl-C. The same command goes on to the same bytes."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.commands import actors_of, kill_tree, parts, start, tokenmill, wait_until
from tests.system.conftest import SHARDS, Case

pytestmark = pytest.mark.system


def some_parts(output: Path, least: int = 1) -> bool:
    return len(parts(output)) >= least


def test_driver_killed_in_the_middle(case: Case, tmp_path: Path) -> None:
    process = start(*case.arguments(tmp_path))
    wait_until(lambda: some_parts(tmp_path), process)
    kill_tree(process)
    survived = parts(tmp_path)
    assert 1 <= len(survived) < SHARDS, "the kill must have come in the middle"
    assert set(survived.items()) < set(case.parts.items())
    before = {name: (tmp_path / "tokens" / name).stat() for name in survived}
    result = tokenmill(*case.arguments(tmp_path))
    assert result.returncode == 0, result.stderr
    assert parts(tmp_path) == case.parts
    for name, stat in before.items():
        now = (tmp_path / "tokens" / name).stat()
        assert (now.st_ino, now.st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns), "a committed shard was done again"
    assert sorted(path.name for path in (tmp_path / "tokens").iterdir()) == sorted(case.parts), "no litter"


@pytest.mark.thorough
def test_actor_killed_in_the_middle(case: Case, tmp_path: Path) -> None:
    output, scratch = tmp_path / "out", tmp_path / "scratch"
    process = start(*case.arguments(output, "--set", f"cluster.scratch={scratch}"))
    wait_until(lambda: some_parts(output) and any(scratch.glob("*/*.parquet")), process)
    victims = actors_of(process)
    assert victims, "no actor found to kill"
    for victim in victims:
        victim.kill()
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said
    assert "is replaced (it died" in said
    assert parts(output) == case.parts
    assert list(scratch.iterdir()) == [], "the drafts of the dead are swept"


@pytest.mark.parametrize(
    ("send", "number"),
    [
        pytest.param(os.kill, signal.SIGTERM, id="SIGTERM", marks=pytest.mark.thorough),
        pytest.param(os.killpg, signal.SIGINT, id="Ctrl-C in a terminal"),
    ],
)
def test_signal_drains_and_the_next_run_goes_on(
    case: Case, tmp_path: Path, send: Callable[[int, int], None], number: signal.Signals
) -> None:
    process = start(*case.arguments(tmp_path))
    wait_until(lambda: some_parts(tmp_path), process)
    send(process.pid, number)  # it leads a group of its own, as a command in a terminal does
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 4, output
    assert "run the same command again" in output
    assert "is replaced" not in output, "the actors went on to drain"
    assert 1 <= len(parts(tmp_path)) < SHARDS
    assert tokenmill("status", tmp_path).returncode == 0
    assert tokenmill(*case.arguments(tmp_path)).returncode == 0
    assert parts(tmp_path) == case.parts
