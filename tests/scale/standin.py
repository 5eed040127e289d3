"""An actor that does no work: it publishes a ready-made part for every shard it is given."""

import os
import shutil
from pathlib import Path

from pipeline.commit import Outcome
from pipeline.encoding import Precision
from pipeline.messages import Calibration, Identity, Pulse, ShardReport, Task
from pipeline.meter import Meter
from pipeline.shards.manifest import Shard
from pipeline.tokens.schema import Counts, TokenSpec

SPEC = TokenSpec(64, 8, 8)


class StandIn:
    """Answers like `pipeline.worker.Worker`. TEMPLATE names the part that it publishes again and again."""

    def __init__(self, job: object, cpus: int, device: str) -> None:
        self._output = Path(job.output.url)  # type: ignore[attr-defined]
        self._template = Path(os.environ["TEMPLATE"])
        self._meter = Meter()

    def load(self) -> Identity:
        return Identity("w", {}, SPEC, Precision.EXACT)

    def measure(self, shards: list[Shard], batch_size: int | None) -> Calibration:
        return Calibration("none", 8, {8: 1.0}, 1.0, 1.0, 1, {})

    def start(self, fingerprint: str, batch_size: int) -> None:
        pass

    def tokenize(self, task: Task) -> ShardReport:
        shutil.copyfile(self._template, self._output / "tokens" / f"{task.shard.id}.parquet")
        self._meter.count(samples=1, images=1, bytes_read=1)
        return ShardReport(Counts(1, 1, 1, 0), Outcome.DONE)

    def cancel(self, shard: str, number: int) -> None:
        pass

    def pulse(self) -> Pulse:
        return Pulse(self._meter.read(), [])


class RemoteStandIn:
    """`pipeline.cluster.RemoteWorker` around a stand-in."""

    def __init__(self, *arguments: object) -> None:
        self._worker = StandIn(*arguments)  # type: ignore[arg-type]

    def call(self, method: str, *arguments: object) -> object:
        return getattr(self._worker, method)(*arguments)
