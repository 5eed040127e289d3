"""A whole run in this process, without Ray: what driver and actor do, one shard after the other."""

import json
from pathlib import Path
from typing import Any

from pipeline.config import job_document, resolve
from pipeline.encoding import Precision
from pipeline.messages import ShardReport, Task
from pipeline.output import Output
from pipeline.shards.manifest import freeze
from pipeline.storage import Storage
from pipeline.worker import Worker

BATCH = 2


def whole_run(model: Path, shards: Path, output: Path, **settings: Any) -> tuple[Output, float | None]:
    """Tokenize all shards into `output`; returns it, and the agreement on the golden images."""
    flags = {"shards": [str(shards)], "model": str(model), "output": str(output), "image.size": 32}
    config = resolve(flags=flags | settings, environment={})
    worker, out = Worker(config, 1, "cpu"), Output(Storage(), str(output))
    job = out.claim(json.loads(json.dumps(job_document(config, worker.load(), None, Precision.EXACT, BATCH))))
    frozen = out.extend_manifest(freeze(Storage(), [str(shards)]))
    golden = worker.start(job["fingerprint"], BATCH, Precision.EXACT)
    for shard in frozen:
        report = worker.tokenize(Task(shard, 1))
        assert isinstance(report, ShardReport), report
    out.summarise(frozen, {})
    Storage().write(f"{out.url}/_SUCCESS", b"")
    return out, golden
