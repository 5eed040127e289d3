"""`tokenmill prior` as a user runs it: Ctrl-C, the same command again, and what it says."""

import json
import re
import signal
from pathlib import Path

import pytest

from pipeline.prior import PriorConfig
from tests.prior.cases import prior_run, tiny_prior
from tests.support.commands import last_json, start, tokenmill, wait_until
from tests.support.token_runs import make_run

pytestmark = pytest.mark.system


def command(run: str, folder: Path, **changes: object) -> list[object]:
    settings = tiny_prior(steps=150, **changes).model_dump(mode="json", exclude_defaults=True)
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    return ["prior", run, "--to", folder, "--json", *words]


def test_ctrl_c_and_the_same_command_again(tiny_model: Path, tmp_path: Path) -> None:
    run, folder = prior_run(tmp_path / "run", tiny_model), tmp_path / "prior"
    process = start(*command(run, folder), OMP_NUM_THREADS="1")
    wait_until((folder / "samples-000008.jpg").exists, process)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 4, said
    assert "stopped; run the same command again to go on" in said
    again = tokenmill(*command(run, folder), OMP_NUM_THREADS="1")
    assert again.returncode == 0, again.stderr
    assert re.search(r"going on after step \d+", again.stderr)
    assert "step 150/150" in again.stderr
    assert re.search(
        r"held out: \d\.\d\d bits per token; unigram 3\.\d\d, by position 3\.\d\d: \d\.\d\d better", again.stdout
    )
    summary = last_json(again)
    assert summary["better"] > 2
    assert summary["bits_per_token"]["held_out"] < summary["bits_per_token"]["by_position"] - 2


def test_prior_that_learned_nothing_and_keys(tiny_model: Path, tmp_path: Path) -> None:
    """One step of a model that knows 64 codes, where 12 are used."""
    run = prior_run(tmp_path / "run", tiny_model)
    result = tokenmill(*command(run, tmp_path / "prior"), "--set", "steps=1", OMP_NUM_THREADS="1")
    assert result.returncode == 3, result.stderr
    assert re.search(r"\d\.\d\d worse", result.stdout)


def test_run_that_is_not_finished(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", finished=False)
    result = tokenmill("prior", run, "--to", tmp_path / "prior")
    assert result.returncode == 2
    assert "the run is not finished" in result.stderr


def test_keys_are_all_documented() -> None:
    said = tokenmill("prior", "--keys").stdout
    for name, field in PriorConfig.model_fields.items():
        assert f"{name} = " in said
        assert f": {field.description}\n" in said
