"""The gates of a run go on from what earlier runs into the same OUTPUT left: evidence is judged again, by new limits.

So a shard that failed a gate fails it again when the same command is run again, until its part is moved away, the limit
is changed, or `qa.on_fail` is `mark`.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipeline.errors import NotFound
from pipeline.qa.config import QaConfig
from pipeline.qa.evidence import QaReport, evidence_url, mean_psnr, read_report
from pipeline.qa.gates import Gates
from pipeline.shards.manifest import shard_id
from pipeline.storage import Storage

READ_AT_MOST = 1000  # reports of committed parts, evenly spread: enough to know the run by
THREADS = 16


def gates_of(
    storage: Storage, output: str, config: QaConfig, committed: Sequence[str], summary: dict[str, Any] | None
) -> Gates:
    """The gates of a run, with what is known of the parts that are there.

    Args:
        storage: of OUTPUT and of `config.baseline`.
        output: URL.
        config: the limits.
        committed: ids of the shards whose parts stay.
        summary: the last summary.json; the shards that its gates name are judged whatever their number.

    Raises:
        UsageError: `config.baseline` is no OUTPUT with evidence.
    """
    gates = Gates(config, mean_psnr(storage, config.baseline) if config.baseline else None)
    if config.samples_per_shard:
        accused = {shard_id(finding["where"]) for finding in (summary or {}).get("gates", [])}
        for report in _reports(storage, output, _chosen(committed, accused)):
            gates.shard(report)
    return gates


def _chosen(committed: Sequence[str], accused: set[str]) -> list[str]:
    step = max(1, -(-len(committed) // READ_AT_MOST))
    return [shard for number, shard in enumerate(sorted(committed)) if number % step == 0 or shard in accused]


def _reports(storage: Storage, output: str, shards: Iterable[str]) -> Iterator[QaReport]:
    """The reports that are there and can be read; the HTML report names the others."""

    def read(shard: str) -> QaReport | None:
        try:
            return read_report(storage, evidence_url(output, shard))
        except (NotFound, ValueError):
            return None

    with ThreadPoolExecutor(THREADS) as pool:
        yield from filter(None, pool.map(read, shards))
