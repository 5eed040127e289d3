"""Simulates runs of 1 to 1,000 GPUs and up to 100,000 shards; prints tables in Markdown, draws docs/scaling.svg.

python -m tests.benchmarks.scaling [--quick]        about 6 minutes on one core; quick: 10 seconds, no picture
"""

import sys
from collections.abc import Iterable

from tests.benchmarks.scaling.picture import picture
from tests.benchmarks.scaling.simulate import Figures, simulate
from tests.benchmarks.scaling.site import Rates, Site, Times
from tests.support.commands import ROOT

PICTURE = ROOT / "docs" / "scaling.svg"
FLEETS, QUICK_FLEETS = (1, 8, 64, 256, 1000), (1, 8, 32)
SHARDS_PER_GPU = (10, 100)
SPOT = (0.0, 0.05, 0.5, 2.0)  # preemptions of a node per hour
HEAD = (
    "GPUs",
    "shards",
    "hours",
    "efficiency",
    "tail, s",
    "lost to starts, GPU-h",
    "to repetition",
    "to waiting",
    "actors lost",
    "driver busy",
)


def cells(found: Figures) -> list[str]:
    """A row of a table, as HEAD names it."""
    return [
        f"{found.gpus:,}",
        f"{found.shards:,}",
        f"{found.hours:.2f}",
        f"{found.efficiency:.1%}",
        f"{found.tail:,.0f}",
        f"{found.starting:,.2f}",
        f"{found.repeated:,.2f}",
        f"{found.idle:,.2f}",
        f"{found.lost:,}",
        f"{found.driver:.0%}",
    ]


def show(title: str, first: str, rows: Iterable[tuple[str, Figures]]) -> list[Figures]:
    """Print a table, row by row as they come; returns the figures."""
    print(f"\n### {title}\n\n| {' | '.join((first, *HEAD))} |\n|{'---|' * (1 + len(HEAD))}", flush=True)
    found = []
    for name, figures in rows:
        assert figures.committed == figures.shards, figures
        print(f"| {' | '.join((name, *cells(figures)))} |", flush=True)
        found.append(figures)
    return found


def main(*, quick: bool = False) -> None:
    """All tables."""
    times, fleets = Times.measured(), QUICK_FLEETS if quick else FLEETS
    middle = fleets[-1] if quick else 256
    sizes = [(gpus, per_gpu) for per_gpu in SHARDS_PER_GPU for gpus in fleets]
    scaling = show(
        "Fleets",
        "shards per GPU",
        ((str(per_gpu), simulate(Site(gpus, gpus * per_gpu, times))) for gpus, per_gpu in sizes),
    )
    choices = [(speculate, largest) for speculate in (True, False) for largest in (True, False)]
    show(
        "Choices",
        "speculation, largest first",
        (
            (
                f"{_yes(speculate)}, {_yes(largest)}",
                simulate(Site(middle, 10 * middle, times), speculation=speculate, largest_first=largest),
            )
            for speculate, largest in choices
        ),
    )
    show(
        "Preemption",
        "of a node, per hour",
        (
            (f"{rate:g}", simulate(Site(middle, 100 * middle, times, Rates(preemptions=rate))))
            for rate in SPOT[: 2 if quick else None]
        ),
    )
    if not quick:
        PICTURE.write_text(picture(scaling), encoding="utf-8")


def _yes(choice: bool) -> str:
    return "yes" if choice else "no"


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
