"""Several processes train one model: together they do what one does alone."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from pipeline.model.checkpoint import WEIGHTS_NAME
from tests.support.commands import ROOT, environment

pytestmark = pytest.mark.system


def together(size: int, folder: Path, *words: str) -> list[dict[str, Any]]:
    """What each of `size` processes holds at the end; `words` are for the last one."""
    folder.mkdir(exist_ok=True)
    processes = []
    for rank in range(size):
        extra = words if rank == size - 1 else ()
        command = [sys.executable, "-m", "tests.fit.peer", str(rank), str(size), str(folder), *extra]
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * size
    return [json.loads(output) for output in outputs]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("pair")
    return folder, together(2, folder)


def test_workers_hold_the_same_weights_and_figures(pair: tuple[Path, list[dict[str, Any]]]) -> None:
    first, second = pair[1]
    assert first == second
    assert first["restarts"], "codes had to be restarted"
    assert first["error"] is None


def test_two_workers_with_half_the_batch_are_as_one_with_the_whole(pair: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, (found, _) = pair
    (alone,) = together(1, folder)
    assert found["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    assert found["restarts"] == alone["restarts"]
    weights, expected = (load_file(folder / name / WEIGHTS_NAME) for name in ("2-0", "1-0"))
    for name, tensor in expected.items():
        assert (weights[name] - tensor).abs().max() <= 1e-3 * tensor.abs().max() + 1e-5, name


def test_weights_that_have_come_apart(tmp_path: Path) -> None:
    found = together(2, tmp_path / "spoiled", "spoil")
    assert len({one["hash"] for one in found}) == 2
    assert all("have come apart" in one["error"] for one in found)
