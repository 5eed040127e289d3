"""Priors learn what there is to learn, go on as if nothing had happened, and refuse what they cannot do."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file

from pipeline.errors import ModelError, UsageError
from pipeline.exports.source import open_source
from pipeline.prior import PriorTask, Training, train_prior
from pipeline.prior.corpus import Corpus
from pipeline.prior.training import PriorReport
from pipeline.storage import Storage
from tests.prior.cases import CODES, Notes, labelled_tokens, prior_run, tiny_prior
from tests.support.models import save_tiny_model

KINDS = ["gpt", "maskgit"]
FILES = ("config.json", "prior.safetensors", "log.csv", "curve.svg", "summary.json", "samples-000012.jpg")


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return prior_run(tmp_path_factory.mktemp("run"), tiny_model)


@pytest.fixture(scope="module")
def labelled(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Labels 0 and 1 have tokens from 4 to 7, labels 2 to 4 tokens from 0 to 3."""
    folder = tmp_path_factory.mktemp("labelled")
    return prior_run(folder, tiny_model, tokens=labelled_tokens, labelled=True)


def task(url: str, folder: Path, **changes: Any) -> PriorTask:
    return PriorTask(folder, open_source(Storage(), url), tiny_prior(**changes))


def training(url: str, **changes: Any) -> Training:
    source, config = open_source(Storage(), url), tiny_prior(**changes)
    corpus = Corpus(source.storage, source.parts, config)
    return Training(corpus, corpus.take_census(), config)


def trained(url: str, **changes: Any) -> tuple[Training, PriorReport]:
    under_way, report = training(url, **changes), None
    while not under_way.finished:
        report = under_way.advance()
    assert report is not None
    return under_way, report


@pytest.mark.parametrize("kind", KINDS)
def test_prior_beats_both_entropies(kind: str, run: str) -> None:
    """Only the first of 16 tokens is news: log2(12) / 16 = 0.22 bits are left, of 3.6."""
    prior, report = trained(run, kind=kind, steps=60, report_interval=200, checkpoint_interval=200)
    assert report.held_out is not None
    assert prior.census.baselines.best > 3.4
    assert 0.05 < report.held_out < 0.5
    samples = prior.sample().flatten(1)
    assert (samples == samples.mode(1).values[:, None]).float().mean() > 0.7


@pytest.mark.parametrize("kind", KINDS)
def test_condition_tells_what_it_tells(kind: str, labelled: str) -> None:
    """The label tells one bit of a whole row, and all of what samples look like."""
    pace = {"steps": 80, "report_interval": 100, "checkpoint_interval": 100, "pictures": 20, "hold_out": 0.4}
    on_label, _ = trained(labelled, kind=kind, condition="label", guidance=1.5, **pace)
    samples = on_label.sample().flatten(1)
    high = torch.arange(20) % 5 < 2
    assert (samples[high] >= 4).float().mean() > 0.9
    assert (samples[~high] < 4).float().mean() > 0.9
    census = on_label.census
    told, _ = on_label.measure()
    census.conditions.copy_(torch.where(census.conditions < 2, 3, 0))  # the wrong labels
    assert on_label.measure()[0] > told + 0.05


def test_fresh_prior_costs_about_log2_of_the_codes(run: str) -> None:
    """And 0.7 bits more, for its logits have variance one."""
    held_out, error = training(run, kind="maskgit").measure()
    assert held_out == pytest.approx(6.7, abs=0.4)
    assert 0 < error < 0.5
    assert CODES == 2**6


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


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def whole(kind: str, run: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "prior"
    assert train_prior(task(run, folder, kind=kind), Notes()) is not None
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


# Between reports, at a report, at a checkpoint, at the end of an epoch (5 batches), before the last step.
@pytest.mark.parametrize("step", [1, 2, 4, 5, 11])
def test_stopped_training_ends_as_if_it_had_not_been(
    step: int, kind: str, whole: Path, run: str, tmp_path: Path
) -> None:
    folder, first, second = tmp_path / "prior", Notes(stop_after=step), Notes()
    assert train_prior(task(run, folder, kind=kind), first) is None
    assert first.steps[-1] == step
    assert train_prior(task(run, folder, kind=kind), second) is not None
    assert (second.began_at, second.steps[-1]) == ([step], 12)
    assert files(folder) == files(whole)


@pytest.mark.parametrize(("step", "goes_on_from"), [(3, 0), (11, 8), (12, 12)])
def test_killed_training_goes_on_from_its_checkpoint(
    step: int, goes_on_from: int, kind: str, whole: Path, run: str, tmp_path: Path
) -> None:
    folder, again = tmp_path / "prior", Notes()
    with pytest.raises(Killed):
        train_prior(task(run, folder, kind=kind), Killer(stop_after=step))
    assert train_prior(task(run, folder, kind=kind), again) is not None
    assert again.began_at == [goes_on_from]
    assert files(folder) == files(whole)


def test_finished_training_is_not_begun_anew(whole: Path, kind: str, run: str) -> None:
    before, notes = files(whole), Notes()
    assert train_prior(task(run, whole, kind=kind), notes) == json.loads(before["summary.json"])
    assert notes.began_at == []
    assert files(whole) == before
    assert (whole / "training" / "state.safetensors").stat().st_size < 8192


def test_folder_says_what_is_in_it(whole: Path, kind: str, run: str) -> None:
    config, summary = (json.loads((whole / name).read_text()) for name in ("config.json", "summary.json"))
    source = open_source(Storage(), run)
    assert config["geometry"]["causal"] == (kind == "gpt") == summary["exact"]
    assert config["trained_on"]["fingerprint"] == source.job["fingerprint"]
    assert config["trained_on"]["steps"] == summary["steps"] == 12
    assert summary["rows"] + summary["held_out_rows"] == 150
    assert load_file(whole / "prior.safetensors")["vocabulary.weight"].shape == (CODES + 2, 32)
    with Image.open(whole / "samples-000012.jpg") as picture:
        assert picture.size == (16 + 8 + 16, 16 + 8 + 16)


def test_other_settings_in_the_same_folder(whole: Path, kind: str, run: str) -> None:
    with pytest.raises(UsageError, match="steps was 12, is 13"):
        train_prior(task(run, whole, kind=kind, steps=13), Notes())


def test_other_rows_in_the_same_folder(run: str, labelled: str, tmp_path: Path) -> None:
    train_prior(task(run, tmp_path, steps=4), Notes(stop_after=2))
    other = prior_run(tmp_path / "other", tmp_path_model(run), samples=(80, 60))
    with pytest.raises(UsageError, match="has done 2 steps and cannot go on: the state was taken on other data"):
        train_prior(task(other, tmp_path, steps=4), Notes())


def test_finished_prior_of_another_run(whole: Path, kind: str, run: str, tmp_path: Path) -> None:
    before, other = files(whole), prior_run(tmp_path, samples=(80, 60))
    with pytest.raises(UsageError, match=f"finished prior of other rows: those that {run} had .* that {other} has"):
        train_prior(task(other, whole, kind=kind), Notes())
    assert files(whole) == before


def test_finished_prior_of_a_run_that_has_grown(tiny_model: Path, tmp_path: Path) -> None:
    train_prior(task(prior_run(tmp_path / "run", tiny_model), tmp_path / "prior", steps=1), Notes())
    shutil.rmtree(tmp_path / "run")
    grown = prior_run(tmp_path / "run", tiny_model, samples=(90, 60, 30))
    with pytest.raises(UsageError, match="finished prior of other rows"):
        train_prior(task(grown, tmp_path / "prior", steps=1), Notes())


def test_finished_prior_of_a_copy_of_the_run(whole: Path, kind: str, run: str, tmp_path: Path) -> None:
    copy = shutil.copytree(run.removeprefix("file://"), tmp_path / "copy")
    assert train_prior(task(str(copy), whole, kind=kind), notes := Notes()) is not None
    assert notes.began_at == []


@pytest.mark.parametrize("name", ["config.json", "prior.safetensors", "summary.json"])
def test_record_of_a_prior_that_is_gone(name: str, whole: Path, kind: str, run: str, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "prior")
    (tmp_path / "prior" / name).unlink()
    with pytest.raises(UsageError, match=f"record of a finished training, but no {name}: empty the folder"):
        train_prior(task(run, tmp_path / "prior", kind=kind), Notes())


def tmp_path_model(url: str) -> Path:
    """The VQ model of a run."""
    return Path(open_source(Storage(), url).job["config"]["model"]["path"].removeprefix("file://"))


def test_model_that_did_not_make_the_tokens(run: str, tmp_path: Path) -> None:
    other = PriorTask(
        tmp_path / "prior", open_source(Storage(), run), tiny_prior(), str(save_tiny_model(tmp_path / "vq", seed=1))
    )
    with pytest.raises(ModelError, match="did not make these tokens"):
        train_prior(other, Notes())
    assert not (tmp_path / "prior").exists()


def test_folder_with_a_model_from_elsewhere(run: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="holds a model, but no training to go on with"):
        train_prior(task(run, tmp_path), Notes())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"dim": 36}, r"dim must be a multiple of 4 \* heads \(8\), got 36"),
        ({"guidance": 2.0}, "guidance must be 1 without a condition"),
        ({"guidance": 2.0, "condition": "label", "condition_dropout": 0.0}, "guidance must be 1 without"),
        ({"hold_out": 0.0}, "greater than 0"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        tiny_prior(**changes)
