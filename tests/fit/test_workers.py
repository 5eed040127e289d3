"""Two workers on CPUs through Ray Train, and how errors and stops come back from them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from safetensors.torch import load_file

from pipeline.errors import RunFailed, UsageError
from pipeline.fit import FitTask, ImageSource, fit_folder
from pipeline.model.checkpoint import WEIGHTS_NAME
from pipeline.on_ray.fit_workers import fit_on_workers
from pipeline.training.state import STATE_FILE
from tests.fit.cases import Notes, team_config

# Ray Train's own imports warn.
pytestmark = [pytest.mark.system, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    yield
    ray.shutdown()


def task(folder: Path, photos: Path, **changes: object) -> FitTask:
    return FitTask(folder, ImageSource(folder=photos), team_config(**{"workers": 2, **changes}), half=False)


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[FitTask, Notes]:
    order, notes = task(tmp_path_factory.mktemp("workers") / "model", photos), Notes()
    assert fit_on_workers(order, notes)
    return order, notes


def test_loss_falls_and_the_leader_reports(trained: tuple[FitTask, Notes]) -> None:
    order, notes = trained
    assert notes.began_at == [0]
    assert [report.step for report in notes.reports] == [4, 8, 12, 16]
    assert notes.reports[-1].loss < 0.7 * notes.reports[0].loss
    names = {path.name for path in order.folder.iterdir()}
    assert names == {"config.json", WEIGHTS_NAME, "log.csv", "curve.svg", "strip.png", "golden.parquet", "training"}
    assert [path.name for path in (order.folder / "training").iterdir()] == [STATE_FILE.name]


def test_two_workers_do_what_one_does(trained: tuple[FitTask, Notes], photos: Path, tmp_path: Path) -> None:
    alone = task(tmp_path / "alone", photos, workers=1)
    assert fit_folder(alone, Notes())
    weights, expected = (load_file(folder / WEIGHTS_NAME) for folder in (trained[0].folder, alone.folder))
    for name, tensor in expected.items():
        assert (weights[name] - tensor).abs().max() <= 1e-3 * tensor.abs().max() + 1e-5, name


@pytest.mark.thorough
def test_stop_is_obeyed_by_all_and_one_worker_goes_on(
    trained: tuple[FitTask, Notes], photos: Path, tmp_path: Path
) -> None:
    order = task(tmp_path / "model", photos)
    assert not fit_on_workers(order, Notes(stop_after=0))
    assert (order.folder / STATE_FILE).stat().st_size > 4096
    assert fit_folder(task(order.folder, photos, workers=1), Notes())
    weights, expected = (load_file(folder / WEIGHTS_NAME) for folder in (order.folder, trained[0].folder))
    for name, tensor in expected.items():
        assert (weights[name] - tensor).abs().max() <= 1e-3 * tensor.abs().max() + 1e-5, name


@pytest.mark.thorough
def test_wrong_use_found_by_a_worker(photos: Path, tmp_path: Path) -> None:
    order = task(tmp_path / "model", photos, workers=1, perceptual_file=tmp_path / "none.safetensors")
    with pytest.raises(UsageError, match=r"none\.safetensors: must be VGG16 weights"):
        fit_on_workers(order, Notes())


@pytest.mark.thorough
def test_worker_that_fails(photos: Path, tmp_path: Path) -> None:
    order = task(tmp_path / "model", photos, workers=1)
    (order.folder / "log.csv").mkdir(parents=True)
    with pytest.raises(RunFailed, match=r"the same command goes on from the last checkpoint"):
        fit_on_workers(order, Notes())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"workers": 4, "batch_size": 16}, r"workers must find 1 CPU each, got 4 workers and 2 CPUs"),
        ({"device": "cuda"}, "the cluster has no GPU"),
    ],
)
def test_cluster_without_room(changes: dict[str, object], says: str, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        fit_on_workers(task(tmp_path / "model", photos, **changes), Notes())
