"""The GPU benchmark itself, shrunk and on a CPU: every step runs, and a failure is told."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.gpu.__main__ import Bench
from tests.support.commands import ROOT


@pytest.mark.system
def test_every_step_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.benchmarks.gpu", "--device", "cpu", "--tiny", "--output", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "gpu.json").read_text())
    assert figures["failed"] == {}
    assert len(figures["checks"]) > 8
    assert all(held for _, held, _ in figures["checks"])
    assert figures["rates"]["f16"]["precisions"]["exact"]["images_s"]["2"] > 0
    assert figures["precisions"]["f16"]["auto"] == "exact"
    assert figures["profile"][0]["share"] > 0
    assert "| engines, 2 |" in (tmp_path / "gpu.md").read_text()


def test_step_that_fails_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 60)
    bench.step("machine", lambda: {"device": "none"})
    bench.step("checks", lambda: 1 / 0)
    bench.step("precisions f16", lambda: {"trials": [], "auto": "exact"}, "precisions")
    figures = json.loads((tmp_path / "gpu.json").read_text())
    assert "ZeroDivisionError" in figures["failed"]["checks"]
    assert figures["precisions"] == {"f16": {"trials": [], "auto": "exact"}}
    assert "**checks failed**" in (tmp_path / "gpu.md").read_text()


def test_no_step_begins_when_the_time_is_up(tmp_path: Path) -> None:
    bench = Bench(tmp_path, -1)
    bench.step("checks", lambda: 1 / 0)
    assert bench.figures["failed"] == {"checks": "no time left"}
