"""An actor that follows a script instead of doing work: it publishes tiny real parts, dies, hangs or fails on demand.

The script is `script.json` beside OUTPUT: shard stem (or `load`, `measure`, `start`) -> list of deeds, one for each
attempt; when the list is used up, the deed is `ok`. With a key `quiet` attempts are not counted, and parts hold one
row.
"""

import json
import os
import time
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from pipeline.commit import Outcome
from pipeline.encoding import Precision, Trial
from pipeline.errors import Reject, Stage
from pipeline.messages import UNFIT, Calibration, Identity, Pulse, ShardReport, Task
from pipeline.meter import Meter
from pipeline.qa.evidence import Evidence, QaReport, pack, publish_evidence
from pipeline.schedule import Failure, Kind
from pipeline.storage import Storage
from pipeline.tokens.schema import ColumnsConfig, Counts, PartFooter, RejectedSample, TokenSpec
from pipeline.tokens.writer import OutputConfig, PartWriter
from tests.tokens.test_schema import row

SPEC = TokenSpec(64, 2, 2)


class StandIn:
    """Answers like `pipeline.worker.Worker`."""

    def __init__(self, job: object, cpus: int, device: str) -> None:
        self._output = Path(job.output.url.removeprefix("file://"))  # type: ignore[attr-defined]
        self._script = json.loads((self._output.parent / "script.json").read_text())
        self._judged = job.qa.samples_per_shard > 0  # type: ignore[attr-defined]
        self._meter, self._stopped, self._fingerprint = Meter(), set(), ""

    def load(self) -> Identity:
        deed = self._deed("load")
        return Identity("other" if deed == "other weights" else "weights", {}, SPEC, "pillow-13")

    def measure(self, shards: object, batch_size: int | None, precision: Precision | None) -> Calibration:
        deed = self._deed("measure")
        while deed == "wait for two" and len(list(self._output.parent.glob("load.*.fired"))) < 2:
            time.sleep(0.05)
        agreement = 0.5 if deed == "disagree" else 1.0
        chosen = precision or (Precision.FP16 if deed == "half is faster" else Precision.EXACT)
        trials = (Trial(chosen, agreement, 100.0),)
        return Calibration("cpu", batch_size or 8, {batch_size or 8: 100.0}, 100.0, 1, {}, trials, chosen)

    def start(self, fingerprint: str, batch_size: int, precision: Precision) -> float | None:
        self._fingerprint = fingerprint
        return 0.5 if self._deed("start") == "wrong tokens" else None

    def tokenize(self, task: Task) -> ShardReport | Failure:
        stem = task.shard.id.rpartition("-")[0]
        deed = self._deed(stem)
        if deed == "die unless careful" and not task.careful:
            os._exit(1)
        if deed == "slow":
            deadline = time.monotonic() + 30
            while (task.shard.id, task.attempt) not in self._stopped and time.monotonic() < deadline:
                time.sleep(0.05)
                self._meter.count(bytes_read=1)
            return Failure(Kind.INFRA, "cancelled", "stopped")
        failures = {
            "task": Failure(Kind.TASK, "truncated", "the shard is cut"),
            "infra": Failure(Kind.INFRA, "storage", "503"),
            "fatal": Failure(Kind.FATAL, "usage", "permission denied"),
            "unfit": Failure(Kind.INFRA, UNFIT, "CUDA error"),
        }
        if deed in failures:
            return failures[deed]
        return self._publish(task, rejects=900 if deed == "rejects" else 0, copies=90 if deed == "placeholders" else 0)

    def cancel(self, shard: str, number: int) -> None:
        self._stopped.add((shard, number))

    def pulse(self) -> Pulse:
        return Pulse(self._meter.read(), [])

    def _deed(self, name: str) -> str:
        """What the script wants this time; counted across processes by files made once."""
        if "quiet" in self._script:
            return "ok"
        deeds = self._script.get(name, [])
        for number in count():
            try:
                (self._output.parent / f"{name}.{number}.fired").touch(exist_ok=False)
            except FileExistsError:
                continue
            break
        deed = deeds[number] if number < len(deeds) else "ok"
        if deed == "die":
            os._exit(1)
        if deed == "hang":
            time.sleep(1000)
        return deed

    def _publish(self, task: Task, rejects: int, copies: int) -> ShardReport:
        rows = 1 if "quiet" in self._script else 100
        counts = Counts(rows + rejects, rows, rows, rejects)
        shard = {"id": task.shard.id, "url": task.shard.url, "size": task.shard.size, "etag": task.shard.etag}
        bad = tuple(RejectedSample(f"k{i}", i, Reject(Stage.DECODE, "corrupt")) for i in range(rows, rows + rejects))
        path = self._output / "tokens" / f".{task.shard.id}.{task.attempt}.tmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        with PartWriter(path, SPEC, ColumnsConfig(), task.shard.url, OutputConfig()) as writer:
            writer.add([row(i) for i in range(rows)], np.zeros((rows, 2, 2), np.int64))
            writer.finish(PartFooter(self._fingerprint, shard, SPEC, counts, bad))
        qa = self._inspect(task, counts, copies) if self._judged else None
        path.replace(self._output / "tokens" / f"{task.shard.id}.parquet")
        self._meter.count(images=rows, samples=rows + rejects, bytes_read=task.shard.size or 0)
        return ShardReport(counts, Outcome.DONE, qa=qa, reading=self._meter.read())

    def _inspect(self, task: Task, counts: Counts, copies: int) -> QaReport:
        report = QaReport(
            fingerprint=self._fingerprint,
            shard={"id": task.shard.id, "url": task.shard.url},
            counts=counts,
            rejects_by_reason={"corrupt": counts.rejects} if counts.rejects else {},
            codebook_size=SPEC.codebook_size,
            packed=pack(np.full(SPEC.codebook_size, 6)),
            out_of_range=0,
            constant_grids=0,
            duplicate_grids=copies,
            split_divergence=0.02,
            sizes={},
            aspects={},
            psnr=None,
            ssim=None,
        )
        with TemporaryDirectory() as folder:
            publish_evidence(Storage(), str(self._output), Evidence(report, []), Path(folder))
        return report


class RemoteStandIn:
    """`pipeline.on_ray.cluster.RemoteWorker` around a stand-in."""

    def __init__(self, *arguments: object) -> None:
        self._worker = StandIn(*arguments)  # type: ignore[arg-type]

    def call(self, method: str, *arguments: object) -> object:
        return getattr(self._worker, method)(*arguments)
