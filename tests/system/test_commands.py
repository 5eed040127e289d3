"""The other commands, and what a terminal shows."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import describe_options
from pipeline.meter import Part
from pipeline.model import VQModel
from tests.support.commands import ROOT, environment, last_json, parts, tokenmill
from tests.system.conftest import SAMPLES, SHARDS, Case

pytestmark = pytest.mark.system


def test_plan_forecasts_images_and_bytes_and_changes_nothing(case: Case, tmp_path: Path) -> None:
    before = sorted(path.name for path in case.shards.iterdir())
    arguments = ["--shards", case.shards, "--model", case.model, "--set", "image.size=64", "--probes", 2]
    prices = tmp_path / "prices.yaml"
    prices.write_text("{currency: EUR, actor_hour: {cpu: 3.6}, thousand_requests: 0.0004}")
    arguments += ["--prices", prices]
    result = tokenmill("plan", *arguments, "--json")
    assert result.returncode == 0, result.stderr
    assert "cost        " in result.stdout
    found = last_json(result)
    assert found["cost"] == pytest.approx(3.6 * found["actor_hours"] + 0.0004 * found["requests"] / 1000)
    assert found["requests"] == 3 * SHARDS
    assert found["images"] == pytest.approx(SHARDS * SAMPLES, rel=0.15)
    size = sum(path.stat().st_size for path in case.output.glob("tokens/*"))
    assert found["output_bytes"] == pytest.approx(size, rel=0.15)
    assert found["bottleneck"] in {Part.DECODE, Part.ENCODE}, "with a model this small either; test_plan.py plants each"
    assert 0.2 < found["bottleneck_busy"] <= 1
    assert found["seconds"] == pytest.approx(found["images"] / found["actor_rate"])
    assert sorted(path.name for path in case.shards.iterdir()) == before
    assert list(tmp_path.iterdir()) == [prices]


def test_report_has_the_forecast_of_a_run_beside_what_came(case: Case) -> None:
    [run] = json.loads((case.output / "report" / "report.json").read_text())["runs"]
    speed = run["speed"]
    assert speed["rows"] == SHARDS * SAMPLES
    assert speed["expected_rows"] == pytest.approx(SHARDS * SAMPLES, rel=0.15)
    assert speed["expected_seconds"] > 0


def test_status_tells_what_the_store_holds(case: Case) -> None:
    found = last_json(tokenmill("status", case.output, "--json"))
    assert found["shards"] == {"total": SHARDS, "committed": SHARDS, "quarantined": 0}
    assert (found["samples"], found["rows"], found["success"]) == (SHARDS * SAMPLES, SHARDS * SAMPLES, True)


def test_status_that_watches_ends_when_the_run_is_complete(case: Case, tmp_path: Path) -> None:
    output = tmp_path / "output"
    shutil.copytree(case.output, output)
    (output / "_SUCCESS").unlink()
    command = [sys.executable, "-m", "jobs", "status", str(output), "--watch", "--every", "0.1", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment()) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["success"] is False
        (output / "_SUCCESS").touch()
        lines = process.stdout.read().splitlines()
    assert process.returncode == 0
    assert json.loads(lines[-1])["success"] is True


def test_terminal_shows_progress_in_place(case: Case, tmp_path: Path) -> None:
    driver, terminal = pty.openpty()
    command = [sys.executable, "-m", "jobs", *map(str, case.arguments(tmp_path))]
    env = environment(TERM="xterm-256color", COLUMNS="160", LINES="40")
    with subprocess.Popen(command, stdout=terminal, stderr=terminal, stdin=terminal, cwd=ROOT, env=env) as process:
        os.close(terminal)
        shown = read_all(driver)
    assert process.returncode == 0, shown
    assert re.search(
        r"shards [1-7]/8 \| [\d,]+ images \| [\d.,]+ images/s \| 0 rejects \| ETA \d+:\d\d \| bound by", shown
    )
    assert "\x1b[" in shown, "redrawn in place"
    assert "finished: 8 of 8 shards are committed" in shown
    assert parts(tmp_path) == case.parts


def test_folder_whose_name_looks_like_markup(case: Case, tmp_path: Path) -> None:
    output, missing = tmp_path / "[/x]:bug:", tmp_path / "[/y]:bug:"
    shutil.copytree(case.output, output)
    for command, code, path in [
        (["status", output], 0, output),
        (["verify", missing], 2, missing),
        (case.arguments(output), 0, output),
    ]:
        result = tokenmill(*command)
        assert result.returncode == code, result.stderr
        assert str(path) in result.stdout + result.stderr


@pytest.mark.thorough
def test_demo_in_an_odd_folder_and_again_at_another_size(tmp_path: Path) -> None:
    folder = tmp_path / "[/x]:bug:"
    first = tokenmill("demo", "--folder", folder, "--size", 16)
    assert first.returncode == 0, first.stderr
    assert f"picture:  {folder}/reconstructions.png" in first.stdout
    before = parts(folder / "tokens")
    second = tokenmill("demo", "--folder", folder, "--size", 24)
    assert second.returncode == 2, second.stdout
    assert f"give another --folder, or delete {folder}/tokens" in second.stderr
    assert "--output" not in second.stderr
    assert parts(folder / "tokens") == before
    assert len(before) == 4


def read_all(terminal: int) -> str:
    chunks = []
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # Linux ends a terminal whose other side closed this way
            break
        if not data:
            break
        chunks.append(data)
    os.close(terminal)
    return b"".join(chunks).decode(errors="replace")


def test_help_documents_every_option() -> None:
    text = tokenmill("run", "--help", COLUMNS="400").stdout
    for key, default, description in describe_options():
        assert f"{key} = {default}: {description}" in text


def test_fit_trains_a_model_that_run_takes(case: Case, tmp_path: Path) -> None:
    few = [
        "steps=12",
        "continuous_steps=4",
        "batch_size=2",
        "crop=32",
        "final_crop=32",
        "min_short_side=64",
        "max_short_side=96",
        "report_interval=4",
        "restart_interval=2",
        "pool_images=20",
    ]
    settings = [word for setting in few for word in ("--set", setting)]
    model = tmp_path / "model"
    result = tokenmill("fit", "--shards", case.shards / "00000.tar", "--output", model, *settings)
    assert result.returncode == 0, result.stderr
    assert len((model / "log.csv").read_text().splitlines()) == 4
    assert VQModel.from_pretrained(model).codebook_size == 1024
    arguments = ["--shards", case.shards / "00000.tar", "--model", model, "--output", tmp_path / "out"]
    done = tokenmill("run", *arguments, "--set", "image.size=32")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--output", "x"], "either --shards or --images"),
        (["--output", "x", "--images", "no-such-folder"], "no-such-folder"),
        (["--output", "x", "--images", "jobs/assets/photos", "--set", "stepps=3"], "got 'stepps=3'"),
        (["--output", "x", "--images", "jobs/assets/photos", "--set", "crop=33"], "crop must be a multiple"),
    ],
)
def test_fit_with_wrong_arguments(arguments: list[str], says: str, tmp_path: Path) -> None:
    arguments = [str(tmp_path / "x") if word == "x" else word for word in arguments]
    result = tokenmill("fit", *arguments)
    assert result.returncode == 2, result.stdout
    assert says in result.stderr
