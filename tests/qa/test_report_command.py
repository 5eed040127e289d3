"""`tokenmill report` as a user runs it."""

from pathlib import Path

import pytest

from tests.support.commands import last_json, tokenmill
from tests.support.evidence_files import healthy

pytestmark = pytest.mark.system


def test_report_is_written_into_output(tmp_path: Path) -> None:
    output = healthy(summary=None, committed=3).write(tmp_path / "run")
    result = tokenmill("report", output, "--json")
    assert result.returncode == 0, result.stderr
    assert "Not finished: 3 of 5 shards are committed" in result.stdout
    assert (output / "report" / "index.html").read_text().startswith("<!doctype html>")
    assert last_json(result)["runs"][0]["verdict"]["level"] == "open"


def test_comparison_leaves_the_report_alone(tmp_path: Path) -> None:
    one, two = (healthy().write(tmp_path / name) for name in ("one", "two"))
    assert tokenmill("report", one, "--compare", two).returncode == 0
    assert sorted(path.name for path in (one / "report").iterdir()) == ["compare.html", "compare.json"]


def test_report_into_a_file(tmp_path: Path) -> None:
    output = healthy().write(tmp_path / "run")
    assert tokenmill("report", output, "--to", tmp_path / "here" / "qa.html").returncode == 0
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["qa.html", "qa.json"]
    assert not (output / "report").exists()


def test_output_without_a_run(tmp_path: Path) -> None:
    result = tokenmill("report", tmp_path)
    assert result.returncode == 2
    assert "no run here" in result.stderr
