"""A run's figures as metrics of Ray, which offers them to Prometheus on every node.

The driver tells them, twice a second at most, from what the actors told it: nothing happens for an image. In Prometheus
they are called `ray_tokenmill_...`, with the label `run`; infra/monitoring draws them and rings at them.
"""

import sys
from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

from pipeline.progress import Fact, Progress, Snapshot

COUNTERS = {
    "images": ("rows made: views tokenized", ()),
    "tokens": ("tokens made", ()),
    "samples": ("samples read", ()),
    "bytes_read": ("bytes of shards read", ()),
    "rejected": ("samples that became no row", ()),
    "rejects": ("the same by reason", ("reason",)),
    "stage_seconds": ("seconds of work, over all threads", ("stage",)),
}
GAUGES = {
    "lanes": ("threads or devices that work at a stage", ("stage",)),
    "queue": ("samples (decode) or views (encode) that wait before a stage", ("stage",)),
    "shards": ("shards by state", ("state",)),
    "actors": ("actors at work", ()),
    "idle_seconds": ("since when nothing has moved", ()),
    "agreement": ("share of the tokens of precision exact, measured at the start", ()),
    "psnr": ("of the reconstructions of the shard judged last (dB)", ()),
}
NOTHING = sys.float_info.min  # Ray's counters take no zero; this is lost in the first true count


class Metrics:
    """Passes everything on to another `Progress`, and every snapshot to Ray as well.

    Args:
        progress: what a person sees.
        run: the label of the run (`run_name`).
    """

    def __init__(self, progress: Progress, run: str) -> None:
        self._progress, self._run = progress, run
        self._counters = {
            name: Counter(f"tokenmill_{name}", description=text, tag_keys=("run", *tags))
            for name, (text, tags) in COUNTERS.items()
        }
        self._gauges = {
            name: Gauge(f"tokenmill_{name}", description=text, tag_keys=("run", *tags))
            for name, (text, tags) in GAUGES.items()
        }
        self._told: dict[tuple[str, str], float] = {}
        for name, (_, tags) in COUNTERS.items():
            if not tags:  # a rate needs an earlier value: what came before the first scrape would never ring
                self._count(name, "", NOTHING)

    def show(self, snapshot: Snapshot) -> None:
        for name, label, value in figures(snapshot):
            if name in COUNTERS:
                self._count(name, label, value)
            else:
                self._gauges[name].set(value, self._tags(GAUGES[name][1], label))
        self._progress.show(snapshot)

    def note(self, message: str, **facts: Fact) -> None:
        self._progress.note(message, **facts)

    def event(self, name: str, **facts: Fact) -> None:
        self._progress.event(name, **facts)

    def count(self, what: str, done: int, total: int) -> None:
        self._progress.count(what, done, total)

    def close(self) -> None:
        self._progress.close()

    def _count(self, name: str, label: str, value: float) -> None:
        """Tell what a counter has gained."""
        gained = value - self._told.get((name, label), 0.0)
        if gained > 0:
            self._told[name, label] = value
            self._counters[name].inc(gained, self._tags(COUNTERS[name][1], label))

    def _tags(self, keys: tuple[str, ...], label: str) -> dict[str, str]:
        return {"run": self._run, **dict.fromkeys(keys, label)}


def figures(snapshot: Snapshot) -> list[tuple[str, str, float]]:
    """A snapshot as (metric, label, value); the label is empty where a metric has none."""
    total = snapshot.total
    plain: dict[str, float | None] = {
        "images": total.images,
        "tokens": total.tokens,
        "samples": total.samples,
        "bytes_read": total.bytes_read,
        "rejected": sum(total.reasons.values()),
        "actors": snapshot.actors,
        "idle_seconds": snapshot.idle,
        "agreement": snapshot.agreement,
        "psnr": snapshot.psnr,
    }
    labelled: dict[str, Mapping[str, float]] = {
        "rejects": total.reasons,
        "stage_seconds": total.busy,
        "lanes": snapshot.lanes,
        "queue": snapshot.queues,
        "shards": {
            "waiting": snapshot.shards_waiting,
            "running": snapshot.shards_running,
            "done": snapshot.shards_done,
            "quarantined": snapshot.quarantined,
        },
    }
    found = [(name, "", float(value)) for name, value in plain.items() if value is not None]
    return found + [(name, label, float(value)) for name, values in labelled.items() for label, value in values.items()]
