"""Measures what the simulation draws from: one actor's worker, shard after shard, from and to a real S3 server.

python -m tests.benchmarks.scaling.measure [SHARDS]        writes measured.json beside this file
"""

import json
import os
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from pipeline.config import resolve
from pipeline.messages import ShardReport, Task
from pipeline.meter import Part
from pipeline.shards.corpus import CorpusConfig, make_corpus
from pipeline.shards.manifest import Shard, freeze
from pipeline.storage import Storage
from pipeline.worker import Worker
from tests.benchmarks.scaling.site import MEASURED
from tests.support.commands import ROOT
from tests.support.s3 import seaweedfs

ASSETS = ROOT / "jobs" / "assets"
SAMPLES = 32  # of a shard
LOADS = 5
AFTERWARDS = (Part.INSPECT, Part.PUBLISH)


def main(shards: int = 60) -> None:
    """Measure, and keep the values, sorted."""
    with TemporaryDirectory(dir="/tmp") as name, seaweedfs(Path(name)) as server:
        os.environ.update(server.environment)
        made = make_corpus(ASSETS, Path(name) / "in", CorpusConfig(shards=shards, samples=SAMPLES))
        client = server.client()
        for path in made:
            client.put(str(path), f"tok/in/{path.name}")
        settings = ["image.size=64", "cluster.shards_in_flight=1"]
        flags = {"shards": ["s3://tok/in"], "model": str(ASSETS / "vq-f8-1024"), "output": "s3://tok/out"}
        config = resolve(settings=settings, flags=flags, environment={})
        frozen = freeze(Storage(config.storage), config.shards)
        load = []
        for _ in range(LOADS):
            began = time.perf_counter()
            worker = Worker(config, 1, "cpu")
            worker.load()
            found = worker.measure(frozen, 8, config.model.fixed_precision)
            assert found is not None
            worker.start("0" * 64, found.batch_size, found.precision)
            load.append(time.perf_counter() - began)
        rows = [_attempt(worker, shard) for shard in frozen]
    work = [row["work"] for row in rows]
    source = f"{shards} shards of {SAMPLES} photographs, SeaweedFS on loopback, the demo's model at 64 px, one core"
    document = {
        "source": source,
        "work": [round(value / median(work), 4) for value in sorted(work)],
        "open": [round(row["open"], 4) for row in sorted(rows, key=lambda row: row["open"])],
        "finish": [round(row["finish"], 4) for row in sorted(rows, key=lambda row: row["finish"])],
        "load": [round(value, 3) for value in sorted(load)],
    }
    MEASURED.write_text(json.dumps(document) + "\n")


def _attempt(worker: Worker, shard: Shard) -> dict[str, float]:
    """CPU seconds per image, and seconds of waiting before the first and after the last image, of one shard."""
    before, cpu = worker.pulse().reading, time.process_time()
    report = worker.tokenize(Task(shard, 1))
    assert isinstance(report, ShardReport), report
    cpu, after = time.process_time() - cpu, worker.pulse().reading
    spent = {part: after.busy.get(part, 0.0) - before.busy.get(part, 0.0) for part in Part}
    finish = sum(spent[part] for part in AFTERWARDS)
    return {"work": cpu / report.counts.rows, "open": spent[Part.FETCH], "finish": finish}


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
