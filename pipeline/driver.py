"""Runs a job: asks the schedule what to do, and has the fleet of actors do it.

One event loop. An actor loads the model; the first one calibrates, which fixes fingerprint and batch size and claims
OUTPUT; then every actor starts and is kept supplied with shards. A dead actor is replaced and its shards are requeued.
The driver keeps no state that OUTPUT does not have: it may die anywhere, and the same command goes on.
"""

import time
from collections.abc import Iterable
from typing import Any

from pipeline.claim import check_precision
from pipeline.commit import probe
from pipeline.config import JobConfig, job_document, precision_of
from pipeline.encoding import Precision
from pipeline.ending import Ending
from pipeline.errors import RunFailed, UsageError
from pipeline.lean import leave_pandas_out
from pipeline.messages import UNFIT, Calibration, Identity, Pulse, ShardReport, Task
from pipeline.monitor import ExitCode, Monitor, Result
from pipeline.on_ray.cluster import cluster
from pipeline.on_ray.fleet import Actor, Call, Fleet, Lost, Phase
from pipeline.on_ray.metrics import Metrics
from pipeline.output import Output
from pipeline.progress import SHOW_SECONDS, Fact, Progress, Silent, run_name
from pipeline.qa.gates import RUN, Finding, Gate, Gates
from pipeline.qa.history import gates_of
from pipeline.resume import Todo, what_is_left
from pipeline.schedule import Assignment, Failure, Kind, Schedule, State
from pipeline.scratch import remove_abandoned
from pipeline.shards.manifest import freeze
from pipeline.signals import Stop, stop_on_signals
from pipeline.storage import Storage

POLL_SECONDS = 0.2
RELEASE_SECONDS = 10.0  # an idle actor waits so long for a shard to come back, or for a slow one to repeat
SAFE_BATCH = 8  # where nothing could be measured
MAX_STILLBORN = 3  # actors in a row that end before they are ready: something is wrong with all of them
MAX_SPOILT = 3  # calibrations that took their actor with them: go on without
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
        retry_rejects: make the parts again that have rejects; each is replaced in one step when its new one is whole.

    Returns:
        The accounts; `exit_code` is 0 (every shard committed), 3 (some quarantined, too many rejects) or 4 (stopped).

    Raises:
        UsageError: the command or the configuration must change.
        RunFailed: the run cannot go on.
    """
    config.check_complete()
    leave_pandas_out()
    progress, began = progress or Silent(), time.monotonic()
    storage = Storage(config.storage)
    remove_abandoned()
    config.check_model(storage)
    output = Output(storage, config.output.url)
    shards = freeze(storage, config.shards)
    if not config.output.allow_overwrite_commit:
        probe(storage, output.url)
        if any(storage.in_parts(output.url, shard.size or 0) for shard in shards):
            probe(storage, output.url, in_parts=True)
    todo = what_is_left(output, shards, retry_quarantined=retry_quarantined, retry_rejects=retry_rejects)
    gates = gates_of(storage, output.url, config.qa, todo.committed, output.summary())
    sizes = ((shard.id, shard.size or 0) for shard in todo.pending)
    schedule = Schedule(sizes, config.limits, canaries=gates.canaries)
    with cluster(config) as placement, stop_on_signals() as stop:
        progress = Metrics(progress, run_name(output.url))
        fleet = Fleet(config, placement)
        job = Driver(config, output, todo, schedule, fleet, gates, progress=progress, stop=stop)
        try:
            stopped = job.work()
            job.fleet.dismiss_all()  # the accounts of many parts take a while, and need no GPU
            ending = Ending(output, todo, gates, config.limits.max_reject_fraction, stop, progress)
            return job.result(ending, stopped, began)
        finally:
            job.fleet.dismiss_all()


class Driver:
    """One run's event loop. What it knows of the world comes from its fleet, the time too."""

    def __init__(
        self,
        config: JobConfig,
        output: Output,
        todo: Todo,
        schedule: Schedule,
        fleet: Fleet,
        gates: Gates,
        *,
        progress: Progress,
        stop: Stop,
    ) -> None:
        self._config, self._output, self._todo = config, output, todo
        self._progress, self._stop = progress, stop
        self._shards = todo.shards
        self._schedule, self.fleet, self._now = schedule, fleet, fleet.now
        placement = fleet.placement
        self._monitor = Monitor(
            shards_total=len(todo.shards),
            shards_before=len(todo.committed),
            bytes_to_do=sum(shard.size or 0 for shard in todo.pending),
            decode_threads=placement.cpus,
            encode_lanes=placement.cpus if placement.device == "cpu" else 1,
            shards_in_flight=config.cluster.shards_in_flight,
            price_per_actor_hour=config.cluster.price_per_actor_hour,
            now=self._now,
        )
        self._identity: Identity | None = None
        self._job: dict[str, Any] | None = None
        self._measuring: str | None = None
        self._measuring_since = 0.0
        self._stillborn = 0
        self._spoilt = 0
        self._gate: str | None = None
        self._gates = gates
        self._show_again = 0.0

    def work(self) -> bool:
        """Do all pending shards. True if the run was stopped before the end.

        Raises:
            TokenmillError: the run cannot go on.
        """
        draining: float | None = None
        while self._job is None or not self._schedule.finished:
            if (self._stop.requested or self._gate) and draining is None:
                draining = self._now()
                self._progress.note("stopping: running shards finish, no new ones begin (once more to stop at once)")
            if draining is not None and self._drained(draining):
                return True
            self._check_health()
            if draining is None:
                self._recruit()
                self._advance()
            self.fleet.feel_pulses()
            for call, answer in self.fleet.listen(POLL_SECONDS):
                self._take(call, answer)
            if self._now() >= self._show_again:
                self._show_again = self._now() + SHOW_SECONDS
                self._end_stalled()
                self._progress.show(self._monitor.snapshot(self._schedule, self.fleet.at_work()))
        return False

    def result(self, ending: Ending, stopped: bool, began: float) -> Result:
        """Say how the run ended.

        Args:
            ending: writes the accounts.
            stopped: the run was, before the end.
            began: when; of `fleet.now` (seconds).
        """
        for column in self._monitor.empty_columns(self._config.columns):
            self._progress.note(f"{column}: no row of this run has a value in this column; is the extension right?")
        self._progress.show(self._monitor.snapshot(self._schedule, self.fleet.at_work()))
        rates = self._monitor.rates(self.fleet.most_at_work)
        if self._job is None:
            code, message = ExitCode.STOPPED, "stopped before the first shard; run the same command again"
            return Result(code, message, self._output.summary() or {}, rates, self._now() - began)
        code, message, summary = ending.account(self._schedule.quarantined(), stopped=stopped, gate=self._gate)
        if self._config.qa.samples_per_shard:
            self._monitor.end(self.fleet.most_at_work)
            ending.report(self._monitor.timeline)
        return Result(code, message, summary, rates, self._now() - began)

    # --- one turn of the loop ---

    def _drained(self, since: float) -> bool:
        over = self._now() - since > self._config.limits.drain_seconds
        return self._stop.now or over or not self._schedule.count(State.RUNNING)

    def _check_health(self) -> None:
        if self._schedule.pausing(self._now()):
            self._monitor.touch()  # nothing is meant to move
        idle, limits, placement = self._monitor.idle_seconds, self._config.limits, self.fleet.placement
        if idle > 2 * limits.stall_seconds:  # a stalled attempt ends after once that time, and its end counts as a move
            raise RunFailed(
                f"nothing has moved for {idle:.0f} s (limits.stall_seconds is {limits.stall_seconds:g}): "
                f"{self.fleet.at_work()} of {placement.most} actors are ready; each asks for {placement.cpus} CPUs and "
                f"{placement.gpus:g} GPUs: does the cluster have them?"
            )
        fraction = self._monitor.reject_fraction()
        if not self._gate and fraction is not None and fraction > limits.max_reject_fraction:
            self._gate = (
                f"{fraction:.1%} of the samples of this run were rejected "
                f"(limits.max_reject_fraction is {limits.max_reject_fraction:.1%})"
            )
            self._gates.findings.append(Finding(Gate.REJECTS, RUN, fraction, limits.max_reject_fraction, self._gate))
            self._progress.note(self._gate)

    def _end_stalled(self) -> None:
        """End the actors of attempts that no longer move: a thread cannot be ended alone."""
        limit = self._config.limits.stall_seconds
        if self._measuring and self._job is None and self._now() - self._measuring_since > limit:
            actor, self._measuring = self._measuring, None
            self._spoilt += 1
            self._replace(actor, f"no calibration after {limit:g} s (limits.stall_seconds)", blame=False)
        for assignment, why in self._schedule.stalled(self._now()):
            if assignment.actor in self.fleet.actors:  # else it was ended for another of its shards
                self._replace(assignment.actor, f"{self._shards[assignment.shard].url}: {why}", assignment.shard)

    def _recruit(self) -> None:
        """Ask for as many actors as may be, while shards wait; those that find no place yet join when there is one."""
        waiting, running = self._schedule.count(State.WAITING), self._schedule.count(State.RUNNING)
        most = self._gates.actors(self.fleet.placement.most)
        if waiting or not self.fleet.actors:
            for _ in range(min(most, max(1, waiting + running)) - len(self.fleet.actors)):
                self.fleet.recruit()

    def _advance(self) -> None:
        """Take every actor to its next step: measure, start, tokenize."""
        if self._job is None:
            self._calibrate()
            return
        for name, actor in list(self.fleet.actors.items()):
            if actor.phase is Phase.LOADED:
                actor.phase = Phase.STARTING
                job = self._job
                self.fleet.call(name, "start", job["fingerprint"], job["batch_size"], precision_of(job))
        self._supply()
        for name, actor in list(self.fleet.actors.items()):
            if actor.phase is Phase.READY:
                self._release(name, actor)

    def _calibrate(self) -> None:
        """Have the first actor that loaded the model measure; without work to do, claim OUTPUT at once."""
        loaded = [name for name, actor in self.fleet.actors.items() if actor.phase is Phase.LOADED]
        if self._measuring is not None or not loaded:
            return
        first = self._spoilt * CALIBRATION_SHARDS  # a shard that killed the calibration is not tried again
        shards = self._todo.pending[first : first + CALIBRATION_SHARDS] if self._spoilt < MAX_SPOILT else []
        if not shards:
            self._claim(None)
            return
        self._measuring, self._measuring_since = loaded[0], self._now()
        there, given = self._output.job(), self._config.model.batch_size
        size = there["batch_size"] if there else (given if given != "auto" else None)
        self.fleet.call(loaded[0], "measure", shards, size, self._fixed_precision(there))

    def _fixed_precision(self, there: dict[str, Any] | None) -> Precision | None:
        """The precision that the user chose, else that of the run which is resumed; None if it is to be chosen."""
        return self._config.model.fixed_precision or (precision_of(there) if there else None)

    def _supply(self) -> None:
        """Fill the free slots, every first one before any second: two large shards must not share a device in vain."""
        for slot in range(self._config.cluster.shards_in_flight):
            ready = (name for name, actor in self.fleet.actors.items() if actor.phase is Phase.READY)
            for name in self._schedule.by_load(name for name in ready if self.fleet.actors[name].running <= slot):
                if self._gates.holds_back(self._schedule.count(State.RUNNING)):
                    return
                assignment = self._schedule.next(name, self._now())
                if assignment is not None:
                    self._give(assignment)

    def _give(self, assignment: Assignment) -> None:
        self.fleet.actors[assignment.actor].running += 1
        self._monitor.begun()
        shard = self._shards[assignment.shard]
        task = Task(shard, assignment.attempt, assignment.careful, shard.id in self._todo.withdrawn)
        self.fleet.call(assignment.actor, "tokenize", task, assignment=assignment)
        self._progress.event("begun", shard=shard.id, attempt=assignment.attempt, actor=assignment.actor)

    def _release(self, name: str, actor: Actor) -> None:
        """Give back the place of an actor that has had nothing to do for a while, as the queue is empty."""
        now = self._now()
        if actor.running or self._schedule.count(State.WAITING):
            actor.idle_since = now
            return
        # one may be needed to repeat each straggler
        needed = max(self.fleet.placement.fewest, self._schedule.count(State.RUNNING) + 1)
        if now - actor.idle_since > RELEASE_SECONDS and len(self.fleet.actors) > needed:
            self.fleet.dismiss(name)

    # --- what actors answer ---

    def _take(self, call: Call, answer: Any) -> None:
        if isinstance(answer, Lost):
            self._lost(call, answer)
        elif isinstance(answer, Identity):
            self._loaded(call.actor, answer)
        elif call.method == "measure":
            self._claim(answer)
        elif call.method == "start":
            self._stillborn = 0
            if answer is not None:
                self._judge(self._gates.golden(call.actor, answer, self._config.model.min_agreement))
        elif isinstance(answer, Pulse):
            self._monitor.reading(call.actor, answer.reading, answer.queues)
            for shard, attempt, moved in answer.moved:
                self._schedule.progress(shard, attempt, moved, self._now())
        elif call.assignment is not None:
            self._tokenized(call.assignment, answer)

    def _loaded(self, name: str, found: Identity) -> None:
        self._monitor.touch()
        if self._identity is None:
            self._identity = found
        elif found != self._identity:
            raise RunFailed(
                f"{name} loaded another model than the first actor (weights {found.weights[:12]}, first "
                f"{self._identity.weights[:12]}), or resamples images in another way ({found.resampler}, first "
                f"{self._identity.resampler}); put the same files and libraries on every node"
            )

    def _claim(self, calibration: Calibration | None) -> None:
        """Fix what the run is, and claim OUTPUT for it."""
        assert self._identity is not None
        self._monitor.touch()
        there = self._output.job()
        precision = calibration.precision if calibration else self._fixed_precision(there) or Precision.EXACT
        if there is None:  # else it was judged when the run began
            for line in check_precision(self._config, precision, calibration, needed=bool(self._todo.pending)):
                self._progress.note(line)
        given = self._config.model.batch_size
        size = calibration.batch_size if calibration else (given if given != "auto" else SAFE_BATCH)
        document = job_document(self._config, self._identity, calibration, precision, size)
        self._job = self._output.claim(document, overwrite=self._config.output.allow_overwrite_commit)
        self._monitor.calibrated(calibration, self._config.image.views, self.fleet.placement.most)
        if self._todo.pending:
            self._output.reopen()
        merged = self._output.extend_manifest(self._todo.given, self._todo.refrozen)
        self._shards = {shard.id: shard for shard in merged}
        if self._todo.pending:
            self._output.take_back_success()  # again: a driver that does not know these shards may have ended
        self._judge(self._gates.findings)

    def _judge(self, findings: Iterable[Finding]) -> None:
        """Say which gates failed; unless they only mark, the run stops."""
        for finding in findings:
            self._progress.note(finding.message)
            if self._config.qa.on_fail == "stop" and not self._gate:
                self._gate = finding.message

    def _tokenized(self, assignment: Assignment, answer: ShardReport | Failure) -> None:
        now = self._now()
        about: dict[str, Fact] = {"shard": assignment.shard, "attempt": assignment.attempt}
        if isinstance(answer, ShardReport):
            self._monitor.reading(assignment.actor, answer.reading)
            losers = self._schedule.done(assignment.shard, assignment.attempt, now)
            if losers is not None:
                self._monitor.committed(answer)
                self._progress.event("committed", **about, rows=answer.counts.rows, rejects=answer.counts.rejects)
                if answer.qa:
                    self._judge(self._gates.shard(answer.qa))
            for loser in losers or ():
                self.fleet.call(loser.actor, "cancel", loser.shard, loser.attempt)
            return
        if answer.kind is Kind.FATAL:
            raise UsageError(answer.message)
        if answer.reason == UNFIT:
            self._replace(assignment.actor, answer.message, blame=False)
            return
        self._monitor.touch()
        if self._schedule.failed(assignment.shard, assignment.attempt, answer, now):
            given_up = self._schedule.state(assignment.shard) is State.QUARANTINED
            what = "quarantined" if given_up else "will be tried again"
            url = self._shards[assignment.shard].url
            self._progress.note(f"{url}: attempt {assignment.attempt} failed, {what}: {answer.message}", **about)

    def _lost(self, call: Call, lost: Lost) -> None:
        """An actor died, cannot be reached any more, or is of no use."""
        if isinstance(lost.cause, UsageError) and self._job is None:
            raise lost.cause  # the model or the configuration, not this actor
        if self._measuring == call.actor:
            self._measuring = None
            self._spoilt += 1
        elif self.fleet.actors[call.actor].phase is not Phase.READY:
            self._stillborn += 1
            if self._stillborn >= MAX_STILLBORN and not self.fleet.at_work():
                raise RunFailed(f"{self._stillborn} actors in a row ended before they were ready: {lost.message}")
        self._replace(call.actor, f"it died: {lost.message}", blame=not lost.with_node)

    def _replace(self, name: str, message: str, stalled: str | None = None, *, blame: bool = True) -> None:
        """Take an actor off the list; its shards go back to the queue, and the next turn recruits another."""
        self._monitor.gone(name)
        self.fleet.dismiss(name)
        shards = self._schedule.lost(name, message, self._now(), stalled=stalled, blame=blame)
        names = ", ".join(self._shards[shard].url for shard in shards) or "none"
        self._progress.note(f"{name} is replaced ({message}); its shards go back to the queue: {names}", actor=name)
