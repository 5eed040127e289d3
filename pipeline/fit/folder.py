"""A training that lives in a folder: it writes the model and its log there, and goes on from there.

MODEL/config.json, diffusion_pytorch_model.safetensors   the model so far, in diffusers' layout
MODEL/log.csv, curve.svg                                  figures of every report
MODEL/strip.png                                           images above, their reconstructions below
MODEL/golden.parquet                                      at the end: pictures with their tokens
MODEL/training/state.safetensors                          what it takes to go on; at the end only a record
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pipeline.errors import Cancelled, UsageError
from pipeline.fit.config import FitConfig
from pipeline.fit.crops import UINT8
from pipeline.fit.held_out import STRIP_IMAGES, draw_strip, measure
from pipeline.fit.log import fit_log
from pipeline.fit.source import ImageSource
from pipeline.fit.team import Team
from pipeline.fit.trainer import FitReport
from pipeline.fit.training import Training
from pipeline.model import VQModel, checkpoint
from pipeline.qa.golden import make_golden, procedural_pictures, write_golden
from pipeline.training.state import State, read_state, write_state
from pipeline.training.watcher import Watcher

_SOURCE = "source"  # in the record of a finished training: where its images came from


@dataclass(frozen=True, slots=True)
class FitTask:
    """What to train, on what, where to. It can be sent to another process.

    Attributes:
        folder: receives the model; a shared one, if workers are on several machines.
        source: images to train on.
        config: all parameters.
        held_out: images to measure on, never trained on, kept in memory; None: not measured.
        half: store the weights as float16: half the size on disk.
    """

    folder: Path
    source: ImageSource
    config: FitConfig
    held_out: ImageSource | None = None
    half: bool = True

    def begun(self) -> State | None:
        """The state of the training in the folder, if it has begun.

        Raises:
            UsageError: it is of another configuration, or damaged, or finished on other images, or the folder holds a
                model from elsewhere.
        """
        state = read_state(self.folder)
        if state is not None:
            state.check(self.config.identity(), self.folder)
            state.check_made(self.folder, (checkpoint.CONFIG_NAME, checkpoint.WEIGHTS_NAME))
            if state.finished and state.progress.get(_SOURCE) not in (None, self.source.digest()):  # None: an old one
                raise UsageError(
                    f"{self.folder} holds a model that is finished, trained on images whose files had other names or "
                    "sizes than those given now: give another output folder"
                )
        elif (self.folder / checkpoint.WEIGHTS_NAME).exists():
            raise UsageError(f"{self.folder} holds a model, but no training to go on with; give another output folder")
        return state


def fit_folder(task: FitTask, watcher: Watcher[FitReport]) -> bool:
    """Trains a model in a folder, or goes on with it, with the team that this process belongs to.

    Returns:
        Whether it is finished; if not, the watcher stopped it, and the same call goes on.

    Raises:
        UsageError: as `FitTask.begun`, or there are no images, or other ones than before.
        RunFailed: the team's weights have come apart.
    """
    state, team = task.begun(), Team()
    if state and state.finished:
        return True
    try:
        training = Training(_until_stopped(task.source.images(), watcher, team), task.config, team)
    except Cancelled:
        return False
    if state:
        training.restore(state)
    leader = _Leader(task, training) if team.leads else None
    watcher.began(training.done)
    while not training.finished:
        if team.any(watcher.stopping(), training.model.device):
            if leader:
                leader.put_down()
            return False
        report = training.advance()
        if training.checkpoint_due:
            team.check_agreement(training.model)
        if leader and report:
            watcher.reported(leader.record(report))
        watcher.stepped(training.done)
    if leader:
        leader.finish()
    return True


def _until_stopped(images: Iterator[UINT8], watcher: Watcher[FitReport], team: Team) -> Iterator[UINT8]:
    """Reading may take a while; a team reads on, because only its leader knows that it is to stop."""
    for image in images:
        if team.size == 1 and watcher.stopping():
            raise Cancelled("stopped while reading the images")
        yield image


class _Leader:
    """The worker that writes files."""

    def __init__(self, task: FitTask, training: Training) -> None:
        self._task, self._training = task, training
        task.folder.mkdir(parents=True, exist_ok=True)
        self._log = fit_log(task.folder, training.done)
        config = task.config
        self._held_out = list(task.held_out.squares(config.held_out_side)) if task.held_out else []
        if task.held_out and not self._held_out:
            raise UsageError("held-out images: must be at least one that can be decoded, got none")
        self._side = max(config.crop, config.final_crop)
        self._source = task.source.digest()
        self._shown = self._held_out or training.crops.middles(self._side, STRIP_IMAGES)

    def record(self, report: FitReport) -> FitReport:
        """Writes a report down; at a checkpoint also everything else. Returns it with the held-out figures, if due."""
        due = self._training.checkpoint_due
        if due and self._held_out:
            psnr, usage = measure(self._training.model, self._held_out)
            report = replace(report, held_out_psnr=psnr, held_out_usage=usage)
        self._log.add(report)
        if due:
            self._log.draw()
            draw_strip(self._training.model, self._shown, self._task.folder / "strip.png")
            self.put_down()
        return report

    def put_down(self) -> None:
        """Writes the model, and what it takes to go on."""
        dtype = torch.float16 if self._task.half else torch.float32
        self._training.model.save_pretrained(self._task.folder, dtype)
        write_state(self._task.folder, self._training.state())

    def finish(self) -> None:
        """Leaves a finished model with its golden images; the state becomes a record of what it was trained with."""
        stored = VQModel.from_pretrained(self._task.folder)  # as others will load it: rounded, on the CPU
        write_golden(self._task.folder, make_golden(stored, procedural_pictures(self._side)))
        record = replace(self._training.state(), tensors={}, progress={_SOURCE: self._source})
        write_state(self._task.folder, record)
