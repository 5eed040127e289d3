"""Units as Ray tasks: a real local Ray, processes that die, errors that are the user's."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from pipeline.config import ClusterConfig
from pipeline.errors import RunFailed, UsageError
from pipeline.exports.job import ExportConfig, export
from pipeline.exports.source import open_source
from pipeline.on_ray.tasks import Tasks
from pipeline.storage import Storage
from tests.support.token_runs import make_run

pytestmark = pytest.mark.system


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    """Ray for the whole module."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


def die_once(folder: Path, number: int) -> int:
    """Twice the number; its process dies the first time that it is asked."""
    try:
        (folder / str(number)).touch(exist_ok=False)
    except FileExistsError:
        return 2 * number
    os._exit(1)


def complain(_common: None, number: int) -> int:
    """An error of the user's at 3, a bug at 4."""
    if number == 3:
        raise UsageError("three is no good")
    return 1 // (4 - number)


def tasks(at_once: int | None = None) -> Tasks:
    return Tasks(ClusterConfig(), at_once)


def test_tasks_whose_processes_die(tmp_path: Path) -> None:
    assert sorted(tasks()(die_once, tmp_path, range(2))) == [0, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"], "each died once"


def test_errors_of_tasks() -> None:
    with pytest.raises(UsageError, match="three is no good"):
        list(tasks()(complain, None, [3]))
    with pytest.raises(RunFailed, match="ZeroDivisionError"):
        list(tasks()(complain, None, [4]))


def test_export_interrupted_and_resumed(tmp_path: Path) -> None:
    source = open_source(Storage(), make_run(tmp_path / "run", (10, 7), views=3, labelled=True))
    config = ExportConfig(format="rar", to=str(tmp_path / "to"), rows_per_file=6)

    def interrupt(done: int, _of: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(source, config, tasks(at_once=1), interrupt)
    assert not (tmp_path / "to" / "pretokenized.jsonl").exists()
    assert export(source, config, tasks()).rows == 51
    export(source, config.model_copy(update={"to": str(tmp_path / "here")}))
    name = "pretokenized.jsonl"
    assert (tmp_path / "to" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()
