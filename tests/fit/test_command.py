"""`tokenmill fit` as a user runs it: Ctrl-C, the same command again, and what it says."""

import json
import os
import re
import signal
from pathlib import Path

import pytest

from pipeline.fit import FitConfig
from tests.fit.cases import TINY, save_photographs
from tests.support.commands import start, tokenmill, wait_until

pytestmark = pytest.mark.system

SETTINGS = {
    "model": json.dumps(TINY.model_dump(mode="json")),
    "steps": 150,
    "batch_size": 2,
    "crop": 16,
    "final_crop": 32,
    "min_short_side": 32,
    "max_short_side": 48,
    "continuous_steps": 10,
    "report_interval": 5,
    "held_out_side": 32,
}


def command(images: Path, model: Path, **changes: object) -> list[object]:
    settings = [word for key, value in (SETTINGS | changes).items() for word in ("--set", f"{key}={value}")]
    return ["fit", "--images", images, "--output", model, "--held-out", images, *settings]


def rows(model: Path) -> int:
    log = model / "log.csv"
    return len(log.read_text().splitlines()) - 1 if log.exists() else 0


def files(model: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in model.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_photographs(tmp_path_factory.mktemp("command") / "images")


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.thorough)])
def test_signal_and_the_same_command_again(number: signal.Signals, images: Path, whole: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    process = start(*command(images, model))
    wait_until(lambda: rows(model) > 0, process)
    process.send_signal(number)
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 4, said
    assert "stopped; run the same command again to go on" in said
    assert 0 < rows(model) < 30
    again = tokenmill(*command(images, model))
    assert again.returncode == 0, again.stderr
    assert "going on after step" in again.stderr
    assert files(model) == files(whole)


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of a command that nothing interrupted."""
    model = tmp_path_factory.mktemp("whole") / "model"
    result = tokenmill(*command(images, model))
    assert result.returncode == 0, result.stderr
    assert re.search(r"ETA \d+:\d\d \| step \d+/150", result.stderr)
    assert "step 150/150" in result.stderr
    assert "held out: PSNR" in result.stderr
    assert f"model in {model}, after 150 steps" in result.stdout
    return model


def test_other_settings_in_the_same_folder(images: Path, whole: Path) -> None:
    result = tokenmill(*command(images, whole, steps=160))
    assert result.returncode == 2
    assert "steps was 150, is 160" in result.stderr


@pytest.mark.thorough
def test_ctrl_c_in_a_terminal_with_two_workers(images: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    process = start(*command(images, model, steps=100_000, batch_size=8, workers=2))
    wait_until(lambda: rows(model) > 0, process)
    os.killpg(process.pid, signal.SIGINT)  # Ray's processes get it too
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 4, said
    assert (model / "training" / "state.safetensors").stat().st_size > 4096


def test_keys_are_all_documented() -> None:
    said = tokenmill("fit", "--keys").stdout
    for name, field in FitConfig.model_fields.items():
        assert f"{name} = " in said
        assert f": {field.description}\n" in said


def test_wrong_value_is_named(images: Path, tmp_path: Path) -> None:
    result = tokenmill(*command(images, tmp_path / "model", codebook="median"))
    assert result.returncode == 2
    assert "codebook: Input should be 'ema' or 'gradient'" in result.stderr
