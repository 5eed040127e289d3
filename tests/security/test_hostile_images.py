"""Hostile images of all kinds become rejects with the right reason, in bounded time and memory, and nothing leaks."""

import json
import subprocess
import sys
from dataclasses import dataclass, field

import pytest

from tests.security.hostile_images import all_kinds, heavy_kinds
from tests.support.commands import ROOT

KINDS, HEAVY = all_kinds(), list(heavy_kinds())
CPU_SECONDS = 1.0  # a good file of this size takes a hundredth
PEAK_BYTES = 64 << 20  # beyond what the process holds; the largest files are 1 MiB, and claim 16 GiB
GROWTH_BYTES = 4 << 20  # between the second round and the last


@dataclass
class Told:
    """What the walled child said.

    Attributes:
        files: verdict, CPU time and memory of each file, by (round, name).
        rounds: what the process held at the end of each round.
        last: the file that was begun last.
        code: the child's exit code.
        noise: its stderr.
    """

    code: int
    noise: str
    files: dict[tuple[int, str], dict] = field(default_factory=dict)
    rounds: list[dict] = field(default_factory=list)
    last: str = ""


@pytest.fixture(scope="module")
def told() -> Told:
    command = [sys.executable, "-m", "tests.security.walled_decoder"]
    child = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=400, check=False)
    found = Told(child.returncode, child.stderr)
    for line in map(json.loads, child.stdout.splitlines()):
        if "begin" in line:
            found.last = line["begin"]
        elif "name" in line:
            found.files[line["round"], line["name"]] = line
        else:
            found.rounds.append(line)
    return found


def test_table_is_large_and_no_kind_comes_twice() -> None:
    assert len(KINDS) >= 60
    assert len({data for _, data in KINDS.values()}) == len(KINDS)


def test_child_outlives_all_of_them(told: Told) -> None:
    assert told.code == 0, f"died of {told.last!r}: {told.noise[-2000:]}"
    assert "Traceback" not in told.noise


@pytest.mark.parametrize("name", KINDS)
def test_reject_and_its_cost(name: str, told: Told) -> None:
    for verdict in verdicts_within_bounds(told, name):
        assert verdict, "it was decoded"
        stage, reason, detail = verdict
        assert (stage, reason) == ("decode", KINDS[name][0]), detail
        assert detail.isprintable()


@pytest.mark.parametrize("name", HEAVY)
def test_picture_with_a_burden_and_its_cost(name: str, told: Told) -> None:
    assert verdicts_within_bounds(told, name) == [None] * len(told.rounds)


def verdicts_within_bounds(told: Told, name: str) -> list[list[str] | None]:
    """The verdict of each round, None for pixels; every round's cost is checked."""
    rounds = [told.files[number, name] for number in range(len(told.rounds))]
    assert len(rounds) > 1
    assert max(line["bytes"] for line in rounds) < PEAK_BYTES
    assert min(line["cpu"] for line in rounds) < CPU_SECONDS
    return [line["verdict"] for line in rounds]


def test_nothing_leaks(told: Told) -> None:
    _, second, *_, last = told.rounds
    assert last["bytes"] - second["bytes"] < GROWTH_BYTES
    assert (last["files"], last["threads"]) == (second["files"], second["threads"])
