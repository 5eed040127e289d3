"""A training on several workers, through Ray Train.

Ray Train starts the processes, gives each its device and joins them in a torch process group (NCCL on GPUs, gloo on
CPUs); everything else is `pipeline.fit`, which knows a team when it is in one. What the leader reports reaches the
driver through a small actor, and the wish to stop goes the other way.
"""

import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any

import ray

from pipeline.config import ClusterConfig, JobConfig
from pipeline.errors import RunFailed, TokenmillError, UsageError
from pipeline.fit.config import FitConfig
from pipeline.fit.folder import FitTask, fit_folder
from pipeline.fit.trainer import FitReport
from pipeline.on_ray.cluster import Placement, cluster
from pipeline.training.state import STATE_FILE
from pipeline.training.watcher import Watcher

_POST_SECONDS = 1.0  # between looks into the mailbox, on both sides


def fit_on_workers(task: FitTask, watcher: Watcher[FitReport]) -> bool:
    """Trains a model in a folder with `task.config.workers` processes, or goes on with it.

    Args:
        task: paths in it must be seen alike by all machines of the cluster; relative shards are those of this folder.
        watcher: told what the leading worker reports, and asked whether to stop.

    Returns:
        Whether it is finished; if not, the watcher stopped it, and the same call goes on.

    Raises:
        UsageError: as `fit_folder`, or Ray Train is not installed, or the cluster has no room for the workers.
        RunFailed: a worker died; the same call goes on from the last checkpoint.
    """
    state = task.begun()
    if state and state.finished:
        return True
    config = task.config
    gpus = None if config.device == "auto" else float(config.device.startswith("cuda"))
    wanted = ClusterConfig(address=config.address, actors=str(config.workers), gpus_per_actor=gpus)
    scratch = (task.folder / STATE_FILE).parent
    scratch.mkdir(parents=True, exist_ok=True)
    with cluster(JobConfig(cluster=wanted)) as placement, tempfile.TemporaryDirectory(dir=scratch) as storage:
        _check_room(config, placement)
        mailbox = ray.remote(num_cpus=0)(Mailbox).remote()
        trainer = _trainer(_Order(task, placement.cpus, os.getcwd(), mailbox), placement, storage)
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(trainer.fit)
            while not wait([running], timeout=_POST_SECONDS).done:
                _deliver(mailbox, watcher)
        _deliver(mailbox, watcher)
        finished, failure = ray.get(mailbox.outcome.remote())
        if failure is not None:
            raise failure
        if (error := running.exception()) is not None:
            raise RunFailed(
                f"the training failed; the same command goes on from the last checkpoint: {error}"
            ) from error
        return bool(finished)


class Mailbox:
    """Between the driver and the leading worker."""

    def __init__(self) -> None:
        self._letters: list[tuple[str, tuple[Any, ...]]] = []
        self._stop = False
        self._outcome: tuple[bool, TokenmillError | None] = (False, None)

    def post(self, method: str, *arguments: Any) -> None:
        """Tell the driver's watcher."""
        self._letters.append((method, arguments))

    def collect(self) -> list[tuple[str, tuple[Any, ...]]]:
        """What was posted since the last time."""
        letters, self._letters = self._letters, []
        return letters

    def stop(self) -> None:
        """Ask the workers to stop."""
        self._stop = True

    def stopping(self) -> bool:
        """Whether they have been asked to."""
        return self._stop

    def end(self, finished: bool, failure: TokenmillError | None = None) -> None:
        """How the training ended; a failure stays."""
        if self._outcome[1] is None:
            self._outcome = (finished, failure)

    def outcome(self) -> tuple[bool, TokenmillError | None]:
        """Whether the training is finished, and what ended it otherwise."""
        return self._outcome


@dataclass(frozen=True, slots=True)
class _Order:
    """What a worker is sent: the task, its threads, the folder in which the command was given, the mailbox."""

    task: FitTask
    threads: int
    folder: str
    mailbox: Any


class _Poster:
    """The watcher in a worker: the leader's writes to the mailbox, the others' is silent."""

    def __init__(self, mailbox: Any, leads: bool) -> None:
        self._mailbox, self._leads = mailbox, leads
        self._asked = self._told = float("-inf")

    def began(self, step: int) -> None:
        self._post("began", step)

    def stepped(self, step: int) -> None:
        if time.monotonic() - self._told >= _POST_SECONDS:
            self._told = time.monotonic()
            self._post("stepped", step)

    def reported(self, report: FitReport) -> None:
        self._post("reported", report)

    def stopping(self) -> bool:
        if not self._leads or time.monotonic() - self._asked < _POST_SECONDS:
            return False
        self._asked = time.monotonic()
        return bool(ray.get(self._mailbox.stopping.remote()))

    def _post(self, method: str, *arguments: Any) -> None:
        if self._leads:
            self._mailbox.post.remote(method, *arguments)


def _trainer(order: _Order, placement: Placement, storage: str) -> Any:
    try:
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
    except ImportError as exc:
        raise UsageError(f"more than one worker needs Ray Train; pip install 'ray[train]' ({exc})") from exc
    scaling = ScalingConfig(
        num_workers=order.task.config.workers,
        use_gpu=placement.gpus > 0,
        resources_per_worker={"CPU": placement.cpus, **({"GPU": placement.gpus} if placement.gpus else {})},
    )
    run = RunConfig(name="fit", storage_path=storage)
    return TorchTrainer(_work, train_loop_config={"order": order}, scaling_config=scaling, run_config=run)


def _work(settings: dict[str, Any]) -> None:
    """What each worker does."""
    import torch
    from ray.train import get_context
    from ray.train.torch import get_device

    order: _Order = settings["order"]
    os.chdir(order.folder)  # Ray Train has moved to a folder of its own; relative shards mean the command's
    torch.set_num_threads(order.threads)
    leads = get_context().get_world_rank() == 0
    task = replace(order.task, config=order.task.config.model_copy(update={"device": str(get_device())}))
    try:
        finished = fit_folder(task, _Poster(order.mailbox, leads))
    except TokenmillError as error:
        ray.get(order.mailbox.end.remote(False, error))
        raise
    if leads:
        ray.get(order.mailbox.end.remote(finished))


def _check_room(config: FitConfig, placement: Placement) -> None:
    """Refuses what Ray Train would wait for without end."""
    there = ray.cluster_resources()
    for kind, each in (("GPU", placement.gpus), ("CPU", float(placement.cpus))):
        if there.get(kind, 0.0) < each * config.workers:
            raise UsageError(
                f"workers must find {each:g} {kind} each, got {config.workers} workers and {there.get(kind, 0.0):g} "
                f"{kind}s; give fewer, or device=cpu"
            )


def _deliver(mailbox: Any, watcher: Watcher[FitReport]) -> None:
    """Pass on what the leader posted, and to it the wish to stop."""
    for method, arguments in ray.get(mailbox.collect.remote()):
        getattr(watcher, method)(*arguments)
    if watcher.stopping():
        mailbox.stop.remote()
