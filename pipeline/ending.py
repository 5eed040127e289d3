"""How a run ends: the accounts of OUTPUT, the verdict, and the report."""

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline.errors import TokenmillError
from pipeline.monitor import ExitCode, verdict
from pipeline.output import Output
from pipeline.progress import SHOW_SECONDS, Progress
from pipeline.qa.gates import Finding, Gates, rejects_of_run
from pipeline.qa.report import make_report, publish_report
from pipeline.resume import Todo
from pipeline.schedule import Failure
from pipeline.signals import Stop
from pipeline.timeline import Timeline
from pipeline.urls import join

UNCOUNTED = (
    "stopped while the accounts were made: every finished part is whole, only summary.json and rejects.parquet are not "
    "written; run the same command again to go on"
)


@dataclass
class Ending:
    """What the end of a run needs to know.

    Attributes:
        output: of the run.
        todo: what there was to do.
        gates: what QA found.
        max_reject_fraction: more rejects than this fail the run.
        stop: whether the user wants to.
        progress: shows how far it is, as many parts take a while.
    """

    output: Output
    todo: Todo
    gates: Gates
    max_reject_fraction: float
    stop: Stop
    progress: Progress
    _show_again: float = 0.0

    def account(
        self, failures: Mapping[str, Failure], *, stopped: bool, gate: str | None
    ) -> tuple[ExitCode, str, dict[str, Any]]:
        """Count what is in OUTPUT, write the accounts, and judge.

        Args:
            failures: of the shards that this run gave up.
            stopped: before the end.
            gate: message of the finding for which the run stopped itself, if it did.

        Returns:
            Exit code, one sentence, summary.json (empty if the user would not wait for it).
        """
        quarantined = self.todo.given_up | {
            shard: {"kind": failure.kind.value, "reason": failure.reason, "message": failure.message}
            for shard, failure in failures.items()
        }
        try:
            with self.stop.interrupting():
                manifest = self.output.manifest()
                summary = self.output.summarise(manifest, quarantined, self._show, self._judged)
        except KeyboardInterrupt:
            return ExitCode.STOPPED, UNCOUNTED, {}
        strangers = {shard.id for shard in manifest} - self.todo.shards.keys()
        waiting = len(strangers - self.output.parts().keys()) if strangers else 0
        failed = [finding.message for finding in self._failed(summary)]
        gate = gate if gate in failed else next(iter(failed), None)
        code, message = verdict(summary, stopped, gate, waiting)
        if code is ExitCode.OK and (waiting := self.output.succeed(manifest)):
            code, message = verdict(summary, stopped, gate, waiting)
        return code, message, summary

    def report(self, timeline: Timeline) -> None:
        """Leave the QA report. Nothing depends on it, so it may fail, and the user need not wait for it."""
        storage, url = self.output.storage, self.output.url
        try:
            with suppress(KeyboardInterrupt), self.stop.interrupting():
                if timeline.points:  # else this run did nothing, and the log of the last one that did is kept
                    storage.write(join(url, "report", "events.json"), timeline.to_json())
                report = make_report(storage, url, now=datetime.now(UTC), on_read=self._show)
                publish_report(storage, report, join(url, "report", "index.html"))
        except TokenmillError as error:
            self.progress.note(f"no QA report was written: {error}; `tokenmill report` makes it again")

    def _failed(self, accounts: Mapping[str, Any]) -> list[Finding]:
        """The gates that failed; that of all samples first, in place of what was found while they were counted."""
        rejects = rejects_of_run(accounts, self.max_reject_fraction)
        if rejects is None:
            return self.gates.findings
        others = [found for found in self.gates.findings if (found.gate, found.where) != (rejects.gate, rejects.where)]
        return [rejects, *others]

    def _judged(self, accounts: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [asdict(finding) for finding in self._failed(accounts)]

    def _show(self, done: int, total: int) -> None:
        if time.monotonic() >= self._show_again:
            self._show_again = time.monotonic() + SHOW_SECONDS
            self.progress.count("counting", done, total)
