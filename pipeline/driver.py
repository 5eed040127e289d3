"""Runs a job on Ray: with `cluster` and `jobs/submit.py` the only room that speaks it.

Decisions are the schedule's; here are their effects. One event loop waits for whatever an actor answers next. An actor
loads the model; the first one calibrates, which fixes fingerprint and batch size and claims OUTPUT; then every actor
starts and is kept supplied with shards. A dead actor is replaced and its shards are requeued. The driver keeps no state
that OUTPUT does not have: it may die anywhere, and the same command goes on.
"""

import itertools
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from pipeline.cluster import Placement, RemoteWorker, cluster
from pipeline.commit import probe
from pipeline.config import JobConfig, job_document
from pipeline.encoding import Precision
from pipeline.errors import RunFailed, TokenmillError, UsageError
from pipeline.messages import Calibration, Identity, Pulse, ShardReport
from pipeline.monitor import ExitCode, Monitor, Result, verdict
from pipeline.output import Output
from pipeline.progress import Progress, Silent
from pipeline.resume import Todo, what_is_left
from pipeline.schedule import Assignment, Failure, Kind, Schedule, State
from pipeline.shards.manifest import freeze
from pipeline.signals import Stop, stop_on_signals
from pipeline.storage import Storage

POLL_SECONDS = 0.2
PULSE_SECONDS = 1.0
RELEASE_SECONDS = 10.0  # an idle actor waits so long for a shard to come back, or for a slow one to repeat
SAFE_BATCH = 8  # where nothing could be measured
MAX_STILLBORN = 3  # actors in a row that die before they are ready: something is wrong with all of them
CALIBRATION_SHARDS = 3  # the first readable one of so many serves


def run(
    config: JobConfig,
    progress: Progress | None = None,
    *,
    retry_quarantined: bool = False,
    retry_rejects: bool = False,
) -> Result:
    """Tokenize what is missing in OUTPUT.

    Args:
        config: the job; shards, model and output must be given.
        progress: where to show what happens.
        retry_quarantined: try the shards again that an earlier run gave up.
        retry_rejects: make the parts again that have rejects; until then they are missing.

    Returns:
        The accounts; `exit_code` is 0 (every shard committed), 3 (some quarantined, too many rejects) or 4 (stopped).

    Raises:
        UsageError: the command or the configuration must change.
        RunFailed: the run cannot go on.
    """
    config.check_complete()
    progress, began = progress or Silent(), time.monotonic()
    storage = Storage(config.storage)
    config.check_model(storage)
    output = Output(storage, config.output.url)
    shards = freeze(storage, config.shards)
    if not config.output.allow_overwrite_commit:
        probe(storage, output.url)
    with cluster(config) as placement, stop_on_signals() as stop:
        todo = what_is_left(output, shards, retry_quarantined=retry_quarantined, retry_rejects=retry_rejects)
        job = _Run(config, output, todo, placement, progress=progress, stop=stop)
        try:
            stopped = job.work()
            return job.result(stopped, time.monotonic() - began)
        finally:
            job.dismiss()


class _Phase(StrEnum):
    """How far an actor has come."""

    LOADING = "loading"
    LOADED = "loaded"
    STARTING = "starting"
    READY = "ready"


@dataclass(slots=True)
class _Actor:
    """One actor as the driver knows it."""

    handle: Any
    phase: _Phase = _Phase.LOADING
    running: int = 0
    pulse_due: float = 0.0
    idle_since: float = 0.0


@dataclass(frozen=True, slots=True)
class _Call:
    """A question an actor has not answered yet."""

    actor: str
    method: str
    assignment: Assignment | None = None


class _Run:
    """One run's event loop."""

    def __init__(
        self,
        config: JobConfig,
        output: Output,
        todo: Todo,
        placement: Placement,
        *,
        progress: Progress,
        stop: Stop,
    ) -> None:
        self._config, self._output, self._placement = config, output, placement
        self._progress, self._stop = progress, stop
        self._todo, self._shards, self._pending = todo, todo.shards, todo.pending
        self._schedule = Schedule(((shard.id, shard.size or 0) for shard in self._pending), config.limits)
        self._monitor = Monitor(
            shards_total=len(self._shards),
            shards_before=len(self._shards) - len(self._pending) - len(todo.given_up),
            bytes_to_do=sum(shard.size or 0 for shard in self._pending),
            decode_threads=placement.cpus,
            shards_in_flight=config.cluster.shards_in_flight,
        )
        self._actors: dict[str, _Actor] = {}
        self._calls: dict[Any, _Call] = {}
        self._names = (f"actor-{number}" for number in itertools.count())
        self._identity: Identity | None = None
        self._job: dict[str, Any] | None = None
        self._batch_size = 0
        self._measuring: str | None = None
        self._stillborn = 0
        self._spoilt = 0

    def work(self) -> bool:
        """Do all pending shards. True if the run was stopped before the end.

        Raises:
            TokenmillError: the run cannot go on.
        """
        draining: float | None = None
        while self._job is None or not self._schedule.finished:
            if self._stop.requested and draining is None:
                draining = time.monotonic()
                self._progress.note("stopping: running shards finish, no new ones begin (once more to stop at once)")
            if draining is not None and self._drained(draining):
                return True
            self._check_health()
            self._end_stalled()
            if draining is None:
                self._recruit()
                self._advance()
            self._listen()
            self._progress.show(self._monitor.snapshot(self._schedule, self._at_work()))
        return False

    def result(self, stopped: bool, seconds: float) -> Result:
        """Write the accounts and say how the run ended."""
        if self._job is None:
            return self._stopped_early(seconds)
        quarantined = self._todo.given_up | {
            shard: {"kind": failure.kind.value, "reason": failure.reason, "message": failure.message}
            for shard, failure in self._schedule.quarantined().items()
        }
        summary = self._output.summarise(list(self._shards.values()), quarantined)
        code, message = verdict(summary, stopped, self._config.limits.max_reject_fraction)
        if code is ExitCode.OK:
            self._output.succeed()
        return Result(code, message, summary, self._monitor.rates(self._placement.most), seconds)

    def dismiss(self) -> None:
        """End all actors."""
        for actor in self._actors.values():
            ray.kill(actor.handle)
        self._actors.clear()

    # --- one turn of the loop ---

    def _drained(self, since: float) -> bool:
        over = time.monotonic() - since > self._config.limits.drain_seconds
        return self._stop.now or over or not self._schedule.count(State.RUNNING)

    def _check_health(self) -> None:
        idle, limits = self._monitor.idle_seconds, self._config.limits
        if idle > 2 * limits.stall_seconds:  # a stalled attempt ends after once that time, and its end counts as a move
            raise RunFailed(
                f"nothing has moved for {idle:.0f} s (limits.stall_seconds is {limits.stall_seconds:g}): "
                f"{self._at_work()} of {self._placement.most} actors are ready; the cluster has "
                f"{ray.cluster_resources().get('CPU', 0):.0f} CPUs and {ray.cluster_resources().get('GPU', 0):.0f} "
                f"GPUs, an actor asks for {self._placement.cpus} and {self._placement.gpus:g}"
            )
        fraction = self._monitor.reject_fraction()
        if fraction is not None and fraction > limits.max_reject_fraction:
            self._stop.signals = max(self._stop.signals, 1)

    def _end_stalled(self) -> None:
        """End the actors of attempts that no longer move: a thread cannot be ended alone."""
        for assignment, why in self._schedule.stalled(time.monotonic()):
            if assignment.actor in self._actors:  # else it was ended for another of its shards
                self._dismiss(assignment.actor, f"{self._shards[assignment.shard].url}: {why}", assignment.shard)

    def _recruit(self) -> None:
        """Ask for as many actors as may be, while shards wait; those that find no place yet join when there is one."""
        waiting, running = self._schedule.count(State.WAITING), self._schedule.count(State.RUNNING)
        if not waiting and self._actors:
            return
        for _ in range(min(self._placement.most, max(1, waiting + running)) - len(self._actors)):
            remote = ray.remote(RemoteWorker).options(
                num_cpus=self._placement.cpus,
                num_gpus=self._placement.gpus,
                max_restarts=0,  # an actor that died is replaced here, where its shards are known
                max_concurrency=self._config.cluster.shards_in_flight + 3,  # the shards, pulse and cancel beside them
            )
            name = next(self._names)
            handle = remote.remote(self._config, self._placement.cpus, self._placement.device)
            self._actors[name] = _Actor(handle)
            self._call(name, "load")

    def _advance(self) -> None:
        """Take every actor to its next step: measure, start, tokenize."""
        if self._job is None:
            self._calibrate()
            return
        for name, actor in list(self._actors.items()):
            if actor.phase is _Phase.LOADED:
                actor.phase = _Phase.STARTING
                self._call(name, "start", self._job["fingerprint"], self._batch_size)
            elif actor.phase is _Phase.READY:
                self._supply(name, actor)
                self._release(name, actor)

    def _calibrate(self) -> None:
        loaded = [name for name, actor in self._actors.items() if actor.phase is _Phase.LOADED]
        if self._measuring is None and loaded:
            first = self._spoilt * CALIBRATION_SHARDS  # a shard that killed the calibration is not tried again
            shards = self._pending[first : first + CALIBRATION_SHARDS]
            if not shards:
                self._claim(None)
                return
            self._measuring = loaded[0]
            there = self._output.job()
            fixed = self._config.model.batch_size
            size = fixed if fixed != "auto" else ((there or {}).get("batch_size") or None)
            self._call(loaded[0], "measure", shards, size)

    def _supply(self, name: str, actor: _Actor) -> None:
        while actor.running < self._config.cluster.shards_in_flight:
            assignment = self._schedule.next(name, time.monotonic())
            if assignment is None:
                break
            actor.running += 1
            self._monitor.begun()
            shard = self._shards[assignment.shard]
            self._call(name, "tokenize", shard, assignment.attempt, assignment.careful, assignment=assignment)
        if time.monotonic() >= actor.pulse_due:
            actor.pulse_due = float("inf")  # until it answers
            self._call(name, "pulse")

    def _release(self, name: str, actor: _Actor) -> None:
        """Give back the place of an actor that has had nothing to do for a while, as the queue is empty."""
        now = time.monotonic()
        if actor.running or self._schedule.count(State.WAITING):
            actor.idle_since = now
        elif now - actor.idle_since > RELEASE_SECONDS and len(self._actors) > 1:
            ray.kill(self._actors.pop(name).handle)

    def _call(self, name: str, method: str, *arguments: Any, assignment: Assignment | None = None) -> None:
        ref = self._actors[name].handle.call.remote(method, *arguments)
        self._calls[ref] = _Call(name, method, assignment)

    def _listen(self) -> None:
        """Take in whatever has been answered."""
        if not self._calls:
            time.sleep(POLL_SECONDS)
            return
        ready, _ = ray.wait(list(self._calls), timeout=POLL_SECONDS)
        for ref in ready:
            call = self._calls.pop(ref)
            if call.actor not in self._actors:
                continue  # it was lost; its shards are requeued already
            try:
                answer = ray.get(ref)
            except RayActorError as error:
                self._lost(call.actor, error)
            except RayTaskError as error:
                cause = error.cause
                if isinstance(cause, TokenmillError):
                    raise cause from None
                raise RunFailed(f"{call.actor} failed in {call.method}: {error}") from error
            else:
                self._take(call, answer)

    def _take(self, call: _Call, answer: Any) -> None:
        if isinstance(answer, Identity):
            self._loaded(call.actor, answer)
        elif call.method == "measure":
            self._claim(answer)
        elif call.method == "start":
            self._actors[call.actor].phase = _Phase.READY
            self._actors[call.actor].idle_since = time.monotonic()
        elif isinstance(answer, Pulse):
            now = time.monotonic()
            self._actors[call.actor].pulse_due = now + PULSE_SECONDS
            self._monitor.reading(call.actor, answer.reading)
            for shard, attempt, moved in answer.moved:
                self._schedule.progress(shard, attempt, moved, now)
        elif call.assignment is not None:
            self._actors[call.actor].running -= 1
            self._tokenized(call.assignment, answer)

    # --- what actors answer ---

    def _loaded(self, name: str, found: Identity) -> None:
        self._monitor.touch()
        self._stillborn = 0
        if self._identity is None:
            self._identity = found
        elif found != self._identity:
            raise RunFailed(
                f"{name} loaded another model than the first actor (weights {found.weights[:12]}, first "
                f"{self._identity.weights[:12]}); put the same files on every node, or give a URL"
            )
        self._actors[name].phase = _Phase.LOADED

    def _claim(self, calibration: Calibration | None) -> None:
        """Fix what the run is, and claim OUTPUT for it."""
        assert self._identity is not None
        self._monitor.touch()
        precision = self._identity.precision
        floor = self._config.model.min_agreement
        if calibration is not None and calibration.agreement < floor:
            raise UsageError(
                f"precision {precision} keeps only {calibration.agreement:.2%} of the tokens of precision "
                f"{Precision.EXACT} (model.min_agreement is {floor:.2%}); choose a finer precision, or lower the floor"
            )
        self._monitor.calibration = calibration
        self._job = self._output.claim(job_document(self._config, self._identity, calibration))
        given = self._config.model.batch_size
        self._batch_size = calibration.batch_size if calibration else (given if given != "auto" else SAFE_BATCH)
        merged = self._output.extend_manifest(self._todo.given, self._todo.refrozen)
        self._shards = {shard.id: shard for shard in merged}
        if self._pending:
            self._output.reopen(self._todo.withdrawn)

    def _tokenized(self, assignment: Assignment, answer: ShardReport | Failure) -> None:
        shard = self._shards[assignment.shard]
        if isinstance(answer, ShardReport):
            losers = self._schedule.done(assignment.shard, assignment.attempt, time.monotonic())
            if losers is not None:
                self._monitor.committed(answer)
            for loser in losers or ():
                if loser.actor in self._actors:
                    self._call(loser.actor, "cancel", loser.shard, loser.attempt)
            return
        if answer.kind is Kind.FATAL:
            raise UsageError(answer.message)
        self._monitor.touch()
        if not self._schedule.failed(assignment.shard, assignment.attempt, answer, time.monotonic()):
            return
        given_up = self._schedule.state(assignment.shard) is State.QUARANTINED
        what = "quarantined" if given_up else "will be tried again"
        self._progress.note(f"{shard.url}: attempt {assignment.attempt} failed, {what}: {answer.message}")

    def _lost(self, name: str, error: RayActorError) -> None:
        """An actor died, or cannot be reached any more."""
        actor = self._actors[name]
        if self._measuring == name:
            self._measuring = None
            self._spoilt += 1
        if actor.phase is _Phase.LOADING:
            self._stillborn += 1
            if self._stillborn >= MAX_STILLBORN:
                raise RunFailed(f"{self._stillborn} actors in a row died while loading the model: {error}") from error
        self._dismiss(name, f"its process died while the shard was in flight: {error}", blame=not _node_lost(error))

    def _dismiss(self, name: str, message: str, stalled: str | None = None, *, blame: bool = True) -> None:
        """Take an actor off the list; its shards go back to the queue."""
        self._monitor.touch()
        ray.kill(self._actors.pop(name).handle)  # it may only have become unreachable
        shards = self._schedule.lost(name, message, time.monotonic(), stalled=stalled, blame=blame)
        names = ", ".join(self._shards[shard].url for shard in shards) or "none"
        what = f"was ended ({message})" if stalled else "died"
        self._progress.note(f"{name} {what} and is replaced; its shards go back to the queue: {names}")

    # --- the end ---

    def _at_work(self) -> int:
        return sum(actor.phase is _Phase.READY for actor in self._actors.values())

    def _stopped_early(self, seconds: float) -> Result:
        summary = self._output.summary() or {}
        message = "stopped before the first shard; run the same command again"
        return Result(ExitCode.STOPPED, message, summary, self._monitor.rates(0), seconds)


def _node_lost(error: RayActorError) -> bool:
    """Whether the actor went down with its node: then no shard of it is under suspicion."""
    return bool(getattr(error, "preempted", False)) or "node has died" in str(error)
