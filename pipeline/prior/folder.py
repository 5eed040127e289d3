"""A prior that lives in a folder: its training writes everything there, and goes on from there.

FOLDER/config.json               geometry, and what it was trained on: the run and its fingerprint
FOLDER/prior.safetensors         the weights so far
FOLDER/log.csv, curve.svg        figures of every report
FOLDER/samples-<step>.jpg        samples at each checkpoint, decoded by the run's VQ model
FOLDER/summary.json              at the end: held-out bits per token beside those without a model
FOLDER/training/state.safetensors  what it takes to go on; at the end only a record
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

from pipeline.decoding import load_model
from pipeline.errors import UsageError
from pipeline.exports.source import Source
from pipeline.model import Tokenizer, denormalise
from pipeline.prior.config import PriorConfig
from pipeline.prior.corpus import Corpus
from pipeline.prior.training import PriorReport, Training
from pipeline.qa.sheet import picture_grid
from pipeline.training.log import BLUE, GRAY, GREEN, RED, Curve, Log, replace_text
from pipeline.training.state import read_state, write_state
from pipeline.training.watcher import Watcher

CONFIG_NAME, WEIGHTS_NAME, SUMMARY_NAME = "config.json", "prior.safetensors", "summary.json"
_DECODED_AT_ONCE = 8  # pictures
_JPEG_QUALITY = 88
_FORMATS = {"step": "d"} | dict.fromkeys(("loss", "held_out", "error", "unigram", "by_position"), ".4f")
_PANELS = {
    "bits per token": [
        Curve("loss", "training loss", BLUE),
        Curve("held_out", "held out", GREEN),
        Curve("unigram", "unigram", GRAY),
        Curve("by_position", "by position", RED),
    ]
}


@dataclass(frozen=True, slots=True)
class PriorTask:
    """What to train, on what, where to.

    Attributes:
        folder: receives the prior.
        source: the run whose tokens it learns.
        config: all parameters.
        model: the VQ model, if it is no longer where job.json says.
        allow_torchscript: run the program that it may be.
    """

    folder: Path
    source: Source
    config: PriorConfig
    model: str | None = None
    allow_torchscript: bool = False


def train_prior(task: PriorTask, watcher: Watcher[PriorReport]) -> dict[str, Any] | None:
    """Trains a prior in a folder, or goes on with it.

    Returns:
        The summary, which summary.json holds too; None if the watcher stopped it: then the same call goes on.

    Raises:
        UsageError: the folder holds something else, or the rows, device or configuration do not fit.
        ModelError: the VQ model cannot be read, or did not make these tokens.
    """
    state = read_state(task.folder)
    if state is not None:
        state.check(task.config.identity(), task.folder)
        if state.finished:
            state.check_made(task.folder, (CONFIG_NAME, WEIGHTS_NAME, SUMMARY_NAME))
            _check_rows(task)
            return dict(json.loads((task.folder / SUMMARY_NAME).read_text()))
    elif (task.folder / CONFIG_NAME).exists():
        raise UsageError(f"{task.folder} holds a model, but no training to go on with; give another output folder")
    # Before the work, should it be gone.
    model = load_model(task.source, task.model, allow_torchscript=task.allow_torchscript)
    corpus = Corpus(task.source.storage, task.source.parts, task.config)
    training = Training(corpus, corpus.take_census(), task.config)
    if state:
        training.restore(state)
    writer = _Writer(task, training, model)
    watcher.began(training.done)
    while not training.finished:
        if watcher.stopping():
            writer.put_down()
            return None
        if report := training.advance():
            writer.record(report)
            watcher.reported(report)
        watcher.stepped(training.done)
    return writer.finish()


def _check_rows(task: PriorTask) -> None:
    """Refuses a finished prior that was trained on other rows than those given now."""
    trained_on = json.loads((task.folder / CONFIG_NAME).read_text())["trained_on"]
    if trained_on["parts"] != task.source.parts.digest:
        raise UsageError(
            f"{task.folder} holds a finished prior of other rows: those that {trained_on['run']['url']} had then, not "
            f"those that {task.source.job['config']['output']['url']} has now; give another output folder"
        )


class _Writer:
    """Everything that goes into the folder."""

    def __init__(self, task: PriorTask, training: Training, model: Tokenizer) -> None:
        self._task, self._training, self._model = task, training, model
        task.folder.mkdir(parents=True, exist_ok=True)
        self._log = Log(task.folder, training.done, _FORMATS, _PANELS)
        self._measured: tuple[float, float] | None = None

    def record(self, report: PriorReport) -> None:
        """A line of the log; at a checkpoint everything else too."""
        self._log.add(report)
        if report.held_out is not None and report.error is not None:
            self._measured = report.held_out, report.error
        if self._training.checkpoint_due:
            self._log.draw()
            self._draw_samples(report.step)
            self.put_down()

    def put_down(self) -> None:
        """Writes the prior, and what it takes to go on."""
        folder, job = self._task.folder, self._task.source.job
        trained_on = {
            "run": job["config"]["output"],
            "fingerprint": job["fingerprint"],
            "parts": self._task.source.parts.digest,
            "steps": self._training.done,
        }
        geometry = asdict(self._training.model.geometry)
        replace_text(folder / CONFIG_NAME, json.dumps({"geometry": geometry, "trained_on": trained_on}, indent=2))
        temporary = folder / f"{WEIGHTS_NAME}.tmp"
        tensors = {name: x.detach().cpu().contiguous() for name, x in self._training.model.state_dict().items()}
        save_file(tensors, temporary)
        temporary.replace(folder / WEIGHTS_NAME)
        write_state(folder, self._training.state())

    def finish(self) -> dict[str, Any]:
        """Writes the summary; the state becomes a record of what it was trained with."""
        census = self._training.census
        held_out, error = self._measured or self._training.measure()
        summary = {
            "kind": self._task.config.kind,
            "steps": self._training.done,
            "rows": census.rows,
            "held_out_rows": census.held_out_rows,
            "measured_rows": len(census.tokens),
            "bits_per_token": {"held_out": held_out, "standard_error": error} | asdict(census.baselines),
            "exact": self._training.exact,
            "better": census.baselines.best - held_out,
        }
        replace_text(self._task.folder / SUMMARY_NAME, json.dumps(summary, indent=2) + "\n")
        write_state(self._task.folder, replace(self._training.state(), tensors={}, progress={}))
        return summary

    def _draw_samples(self, step: int) -> None:
        path, model = self._task.folder / f"samples-{step:06d}.jpg", self._model
        grids = torch.split(self._training.sample().to(model.device), _DECODED_AT_ONCE)
        with torch.no_grad():
            pixels = torch.cat([denormalise(model.decode_indices(some)).cpu() for some in grids])
        temporary = path.with_suffix(".tmp")
        picture_grid([Image.fromarray(image) for image in pixels.numpy()]).save(
            temporary, format="JPEG", quality=_JPEG_QUALITY
        )
        temporary.replace(path)
