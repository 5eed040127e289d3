"""Two runs side by side: what they say of the same images."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.qa.report.estimate import Estimate, estimate
from pipeline.qa.report.figures import METRICS, row_counts
from pipeline.qa.report.records import Sample
from pipeline.qa.report.run import Run


@dataclass(frozen=True, slots=True)
class Paired:
    """Two runs on the same images: second minus first."""

    images: int
    differences: Mapping[str, Estimate | None]


def pairs(first: Run, second: Run, *, only_random: bool = False) -> list[tuple[Sample, Sample]]:
    """The views that both runs have evidence of, by shard and key, or by key alone if they share no shard."""
    shared = {record.id for record in first.records} & {record.id for record in second.records}
    left, right = (_by_key(run, bool(shared), only_random) for run in (first, second))
    return [(left[key], right[key]) for key in sorted(left.keys() & right.keys())]


def paired(first: Run, second: Run) -> Paired:
    """The mean difference of each metric over the views that both runs chose at random."""
    both = pairs(first, second, only_random=True)
    differences: dict[str, Estimate | None] = {}
    for metric in METRICS:
        found = [(getattr(a, metric.name), getattr(b, metric.name), a.shard) for a, b in both]
        known = [(b - a, shard) for a, b, shard in found if a is not None and b is not None]
        numbers, shards = [number for number, _ in known], [shard for _, shard in known]
        differences[metric.name] = estimate(numbers, shards, row_counts(first)) if known else None
    return Paired(len(both), differences)


def _by_key(run: Run, by_shard: bool, only_random: bool) -> dict[tuple[str, str, int], Sample]:
    """Views by name; a name that stands for several is left out."""
    named: dict[tuple[str, str, int], list[Sample]] = {}
    for record in run.records:
        for view in record.views:
            if view.kind == "random" or not only_random:
                named.setdefault((view.shard if by_shard else "", view.key, view.view), []).append(view)
    return {name: views[0] for name, views in named.items() if len(views) == 1}
