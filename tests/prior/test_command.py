"""`tokenmill prior` as a user runs it: Ctrl-C, the same command again, and what it says."""

import json
import re
import signal
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.__main__ import app
from pipeline.errors import UsageError
from pipeline.prior import PriorConfig
from tests.prior.cases import prior_run, tiny_prior
from tests.support.commands import last_json, start, tokenmill, wait_until


def command(run: str, folder: Path, **changes: object) -> list[str]:
    settings = tiny_prior(**changes).model_dump(mode="json", exclude_defaults=True)
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    return ["prior", run, "--to", str(folder), "--json", *words]


@pytest.mark.system
def test_ctrl_c_and_the_same_command_again(tiny_model: Path, tmp_path: Path) -> None:
    arguments = command(prior_run(tmp_path / "run", tiny_model), tmp_path / "prior", steps=120)
    process = start(*arguments, OMP_NUM_THREADS="1")
    wait_until((tmp_path / "prior" / "samples-000004.jpg").exists, process)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 4, said
    assert "stopped; run the same command again to go on" in said
    again = tokenmill(*arguments, OMP_NUM_THREADS="1")
    assert again.returncode == 0, again.stderr
    assert re.search(r"going on after step \d+", again.stderr)
    assert "step 120/120" in again.stderr
    bits = r"held out: 0\.\d\d bits per token; unigram 3\.\d\d, by position 3\.\d\d: 3\.\d\d better"
    assert re.search(bits, again.stdout)
    assert last_json(again)["better"] > 3


def test_prior_that_learned_nothing(tiny_model: Path, tmp_path: Path) -> None:
    """One step of a model of 64 codes, where 12 are used."""
    arguments = command(prior_run(tmp_path / "run", tiny_model), tmp_path / "prior", kind="maskgit", steps=1)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 3, result.output
    assert re.search(r"held out: at most \d\.\d\d bits per token; .*: \d\.\d\d worse", result.stdout)


def test_run_that_is_not_finished(tiny_model: Path, tmp_path: Path) -> None:
    run = prior_run(tmp_path / "run", tiny_model, finished=False)
    refused = CliRunner().invoke(app, command(run, tmp_path / "prior"))
    assert isinstance(refused.exception, UsageError)
    assert "the run is not finished" in str(refused.exception)
    taken = CliRunner().invoke(app, [*command(run, tmp_path / "prior", steps=1), "--partial"])
    assert taken.exit_code in (0, 3), taken.output


def test_keys_are_all_documented() -> None:
    said = CliRunner().invoke(app, ["prior", "--keys"]).stdout
    for name, field in PriorConfig.model_fields.items():
        assert f"{name} = " in said
        assert f": {field.description}\n" in said


@pytest.mark.parametrize("value", ["[1", "2026-13-01"])
def test_setting_that_is_no_yaml(value: str, tmp_path: Path) -> None:
    refused = CliRunner().invoke(app, ["prior", str(tmp_path), "--to", str(tmp_path), "--set", f"steps={value}"])
    assert isinstance(refused.exception, UsageError)
    assert str(refused.exception).startswith("--set steps: no valid YAML: ")
