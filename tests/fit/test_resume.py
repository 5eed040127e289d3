"""A training put down and taken up again ends as if nothing had happened."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UsageError
from pipeline.fit import FitTask, ImageSource, fit_folder
from pipeline.model import VQModel, weights_hash
from pipeline.training import state
from tests.fit.cases import Notes, quick_task, save_photographs
from tests.support.corpora import write_shard

FILES = ("diffusion_pytorch_model.safetensors", "config.json", "log.csv", "curve.svg", "strip.png", "golden.parquet")


class Killed(BaseException):
    """Stands for a SIGKILL: nothing handles it."""


class Killer(Notes):
    """Ends the process, so to speak, after a step."""

    def stepped(self, step: int) -> None:
        super().stepped(step)
        if step == self.stop_after:
            raise Killed

    def stopping(self) -> bool:
        return False


@pytest.fixture(scope="module", params=["ema", "gradient"])
def codebook(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def whole(codebook: str, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "model"
    assert fit_folder(quick_task(folder, photos, codebook=codebook), Notes())
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


# While the autoencoder is continuous, as the codebook begins, between reports, at a checkpoint, among the final crops.
@pytest.mark.parametrize("step", [3, 8, 13, 20, 22])
def test_stopped_training(step: int, codebook: str, whole: Path, photos: Path, tmp_path: Path) -> None:
    task = quick_task(tmp_path / "model", photos, codebook=codebook)
    first, second = Notes(stop_after=step), Notes()
    assert not fit_folder(task, first)
    assert first.steps[-1] == step
    assert fit_folder(task, second)
    assert (second.began_at, second.steps[-1]) == ([step], 24)
    assert files(task.folder) == files(whole)
    assert [r.step for r in first.reports + second.reports] == [5, 10, 15, 20, 24]


def test_training_stopped_after_every_step(photos: Path, whole: Path, codebook: str, tmp_path: Path) -> None:
    task = quick_task(tmp_path / "model", photos, codebook=codebook)
    ends = [fit_folder(task, Notes(stop_after=step)) for step in range(1, 25)]
    assert ends == [False] * 23 + [True]
    assert files(task.folder) == files(whole)


def test_killed_training_goes_on_from_its_checkpoint(photos: Path, whole: Path, codebook: str, tmp_path: Path) -> None:
    task, second = quick_task(tmp_path / "model", photos, codebook=codebook), Notes()
    with pytest.raises(Killed):
        fit_folder(task, Killer(stop_after=17))
    assert "15," in (task.folder / "log.csv").read_text()
    assert fit_folder(task, second)
    assert second.began_at == [10]
    assert files(task.folder) == files(whole)


def test_checkpoint_cut_off_while_written(
    photos: Path, whole: Path, codebook: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, written = quick_task(tmp_path / "model", photos, codebook=codebook), []

    def cut(tensors: Any, path: Path, metadata: Any) -> None:
        written.append(path)
        if len(written) < 2:
            save(tensors, path, metadata)
        else:
            path.write_bytes(b"half a checkpoint")
            raise OSError("No space left on device")

    save = state.save_file
    with monkeypatch.context() as patch:
        patch.setattr(state, "save_file", cut)
        with pytest.raises(OSError, match="No space left"):
            fit_folder(task, Notes())
    assert len(written) == 2
    assert fit_folder(task, second := Notes())
    assert second.began_at == [10]
    assert files(task.folder) == files(whole)


@pytest.fixture
def begun(photos: Path, tmp_path: Path) -> FitTask:
    task = quick_task(tmp_path / "model", photos)
    assert not fit_folder(task, Notes(stop_after=3))
    return task


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"steps": 30, "codebook": "gradient"}, 'codebook was "ema", is "gradient"; steps was 24, is 30'),
        ({"precision": "bf16"}, 'precision was "float32", is "bf16"'),
    ],
)
def test_another_configuration(changes: dict[str, Any], says: str, begun: FitTask, photos: Path) -> None:
    with pytest.raises(UsageError, match=f"{begun.folder} holds a training of another configuration: {says}"):
        fit_folder(quick_task(begun.folder, photos, **changes), Notes())


def test_another_geometry(begun: FitTask, photos: Path) -> None:
    model = begun.config.model.model_copy(update={"num_vq_embeddings": 64})
    with pytest.raises(UsageError, match=r"model\.num_vq_embeddings was 32, is 64"):
        fit_folder(quick_task(begun.folder, photos, model=model), Notes())


def test_settings_that_do_not_decide_the_weights_may_change(begun: FitTask, photos: Path) -> None:
    task = quick_task(begun.folder, photos, report_interval=7, held_out_side=16)
    assert fit_folder(task, notes := Notes())
    assert [report.step for report in notes.reports] == [7, 14, 21, 24]


def test_other_images(begun: FitTask, tmp_path: Path) -> None:
    others = save_photographs(tmp_path / "more", count=5)
    with pytest.raises(UsageError, match="has done 3 steps on other images"):
        fit_folder(quick_task(begun.folder, others), Notes())


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:200]),
        lambda path: path.write_bytes(b""),
        lambda path: state.save_file({}, path, metadata={"format": "pt"}),
        lambda path: state.save_file({}, path, metadata={"tokenmill-training": json.dumps({"step": 1})}),
    ],
    ids=["truncated", "empty", "foreign", "incomplete"],
)
def test_damaged_state(damage: Callable[[Path], None], begun: FitTask) -> None:
    damage(begun.folder / state.STATE_FILE)
    with pytest.raises(UsageError, match=r"state\.safetensors: damaged, so the training cannot go on"):
        fit_folder(begun, Notes())


def test_model_from_elsewhere_is_not_overwritten(tiny_model: Path, photos: Path) -> None:
    before = weights_hash(VQModel.from_pretrained(tiny_model))
    with pytest.raises(UsageError, match="holds a model, but no training to go on with"):
        fit_folder(quick_task(tiny_model, photos), Notes())
    assert weights_hash(VQModel.from_pretrained(tiny_model)) == before


def test_finished_training_is_left_alone(whole: Path, codebook: str, photos: Path) -> None:
    before = files(whole)
    assert (whole / state.STATE_FILE).stat().st_size < 4096
    assert fit_folder(quick_task(whole, photos, codebook=codebook), notes := Notes())
    assert notes.began_at == []
    with pytest.raises(UsageError, match="seed was 0, is 5"):
        fit_folder(quick_task(whole, photos, codebook=codebook, seed=5), Notes())
    assert files(whole) == before


def test_finished_training_on_other_images(whole: Path, codebook: str, photos: Path, tmp_path: Path) -> None:
    before = files(whole)
    others = save_photographs(tmp_path / "others", seed=1)  # of the same names
    with pytest.raises(UsageError, match=f"{whole} holds a model that is finished, trained on images whose files had"):
        fit_folder(quick_task(whole, others, codebook=codebook), Notes())
    copy = shutil.copytree(photos, tmp_path / "copy")
    assert fit_folder(quick_task(whole, copy, codebook=codebook), Notes())
    assert files(whole) == before


def test_finished_training_on_other_shards(photos: Path, tmp_path: Path) -> None:
    for number, photo in enumerate(sorted(photos.iterdir())):
        write_shard(tmp_path / f"{number}.tar", {"0": {"png": photo.read_bytes()}})

    def given(shards: str) -> FitTask:
        return replace(quick_task(tmp_path / "model", photos), source=ImageSource((f"{tmp_path}/{shards}",)))

    assert fit_folder(given("{0..1}.tar"), Notes())
    assert fit_folder(given("[01].tar"), notes := Notes())
    assert notes.began_at == []
    with pytest.raises(UsageError, match="trained on images whose files had other names or sizes"):
        fit_folder(given("{0..2}.tar"), Notes())


def test_record_from_before_it_told_of_images(whole: Path, codebook: str, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "model")
    record = state.read_state(whole)
    assert record is not None
    state.write_state(tmp_path / "model", replace(record, progress={}))
    assert fit_folder(quick_task(tmp_path / "model", photos, codebook=codebook), Notes())


@pytest.mark.parametrize("name", ["config.json", "diffusion_pytorch_model.safetensors"])
def test_record_of_a_model_that_is_gone(name: str, whole: Path, codebook: str, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "model")
    (tmp_path / "model" / name).unlink()
    with pytest.raises(UsageError, match=f"record of a finished training, but no {name}: empty the folder"):
        fit_folder(quick_task(tmp_path / "model", photos, codebook=codebook), Notes())
