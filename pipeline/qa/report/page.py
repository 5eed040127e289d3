"""One HTML file out of numbers, plots and pictures: nothing in it is fetched, and nothing in it runs but its own
script.

Keys, URLs and messages come from the corpus, so they are text that may be hostile: the template escapes everything
that is not made here, and a content security policy allows the one script and style sheet by their hashes.
"""

import base64
import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.qa.report import plots
from pipeline.qa.report.estimate import Estimate
from pipeline.qa.report.figures import METRICS, RunFigures, metric_spread, total_histogram, values
from pipeline.qa.report.gallery import Gallery
from pipeline.qa.report.pairs import Paired
from pipeline.qa.report.run import Run

HERE = Path(__file__).parent
ABSENT, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
MAIN_FACTS = (
    *("fingerprint", "weights", "precision", "tokens", "tokenmill", "versions.", "device", "agreement"),
    *("image.recipe", "image.size", "image.interpolation", "image.decode"),
)
FIRST = 8  # exhibits of a gallery that are in sight at once
KINDS = "ab"  # the first and the second run, in style classes
SIDES = {n: f"{2 ** (n // 2):,}" for n in range(0, 60, 2)}  # ticks at powers of two (pixels)
RATIOS = {-8: "1:4", -4: "1:2", 0: "1:1", 4: "2:1", 8: "4:1"}  # log2(width / height) in steps of a quarter


@dataclass(frozen=True, slots=True)
class ProvenanceLine:
    """One fact of each run; `same` if all agree, `main` if it is to be in sight at once."""

    name: str
    values: tuple[str, ...]
    same: bool
    main: bool


def render(
    runs: Sequence[Run], numbers: Sequence[RunFigures], paired: Paired | None, shown: Sequence[Gallery], made: str
) -> str:
    """The page.

    Args:
        runs, numbers: one run, or two side by side.
        paired: their differences, if there are two.
        shown: the pictures.
        made: when, and by what.
    """
    style, script = (HERE / "page.css").read_text(), (HERE / "page.js").read_text()
    return (
        _environment()
        .get_template("page.html.jinja")
        .render(
            runs=numbers,
            letters=[kind.upper() for kind in KINDS[: len(runs)]],
            metrics=METRICS,
            reasons=_names(one.rejects_by_reason for one in numbers),
            rules=_names(one.filtered_by_rule for one in numbers),
            paired=paired,
            galleries=shown,
            first=FIRST,
            places=[_places(one) for one in numbers],
            plots=_plots(runs, numbers),
            provenance=_provenance(numbers),
            made=made,
            style=style,
            script=script,
            style_hash=_hash(style),
            script_hash=_hash(script),
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "count": _count,
        "percent": percent,
        "fixed": _fixed,
        "interval": _interval,
        "size": _size,
        "brief": _brief,
    }
    environment.globals["clock"] = _clock
    return environment


def _plots(runs: Sequence[Run], numbers: Sequence[RunFigures]) -> dict[str, Any]:
    """Every plot that there is something to draw for."""
    drawn: dict[str, Any] = {"metrics": {}}
    for metric in METRICS:
        found = {
            kind: (values(run, metric.name)[0], metric_spread(run, metric.name))
            for kind, run in zip(KINDS, runs, strict=False)
        }
        series = [plots.Series(kind, some, spread.mean) for kind, (some, spread) in found.items() if spread]
        if series:
            label = f"{metric.title} ({metric.unit})" if metric.unit else metric.title
            drawn["metrics"][metric.name] = plots.distribution(series, f"Distribution of {metric.title}", label)
    totals = {kind: total_histogram(run) for kind, run in zip(KINDS, runs, strict=False)}
    if any(total.sum() for total in totals.values()):
        drawn["usage"] = plots.usage_curve(totals)
    drawn["positions"] = [_heat(one) for one in numbers]
    sizes = {
        kind: {round(2 * math.log2(max(1, int(k)))): n for k, n in one.sizes.items()}
        for kind, one in zip(KINDS, numbers, strict=False)
    }
    if any(sizes.values()):
        drawn["sizes"] = plots.buckets(sizes, "Short sides of the images", "short side (pixels)", SIDES)
    aspects = {
        kind: {round(4 * float(k)): n for k, n in one.aspects.items()}
        for kind, one in zip(KINDS, numbers, strict=False)
    }
    if any(aspects.values()):
        drawn["aspects"] = plots.buckets(aspects, "Aspect ratios of the images", "width : height", RATIOS)
    drawn["speed"] = [_speed(run) for run in runs]
    return drawn


def _heat(one: RunFigures) -> Markup | None:
    if one.positions is None:
        return None
    grid = np.array(one.positions.grid).reshape(one.positions.height, one.positions.width)
    return plots.heat(grid, "Entropy of the codes by place in the grid", "bits")


def _speed(run: Run) -> list[Markup]:
    if run.throughput is None or not run.throughput.points:
        return []
    ends, rates, shares = run.throughput.intervals()
    return [plots.rate_over_time(ends, rates), plots.busy_over_time(ends, shares)]


def _provenance(numbers: Sequence[RunFigures]) -> list[ProvenanceLine]:
    names = dict.fromkeys(name for one in numbers for name in one.provenance)
    lines = []
    for name in names:
        facts = tuple(one.provenance.get(name, ABSENT) for one in numbers)
        same = len(set(facts)) == 1
        lines.append(ProvenanceLine(name, facts, same, not same or name.startswith(MAIN_FACTS)))
    return lines


def _places(one: RunFigures) -> dict[str, str]:
    """The shard that a gate's `where` stands for, if it is in the table: by id and by URL."""
    return {name: line.id for line in one.outliers for name in (line.id, line.url)}


def _names(counts: Iterable[Mapping[str, int]]) -> list[str]:
    """Every reason or rule of all runs, the most frequent first."""
    total = sum(map(Counter, counts), Counter[str]())
    return [name for name, _ in total.most_common()]


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


# --- numbers as people read them -------------------------------------------------------------------------------------


def _count(value: float) -> str:
    return f"{value:,.0f}"


def percent(share: float) -> str:
    """A share with as many digits as tell it from none and from all."""
    if share in (0, 1):
        return f"{share:.0%}"
    digits = 1 if 0.001 <= share <= 0.999 else 3
    return f"{share:.{digits}%}"


def _fixed(value: float | None, digits: int, sign: bool = False) -> str:
    return ABSENT if value is None else f"{value:{'+' if sign else ''},.{digits}f}".replace("-", MINUS)


def _interval(found: Estimate, digits: int, sign: bool = False) -> str:
    if found.low is None:
        return ABSENT
    return f"{_fixed(found.low, digits, sign)} to {_fixed(found.high, digits, sign)}"


def _brief(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, int | float) else str(value)


def _size(count: float) -> str:
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= limit:
            return f"{count / limit:,.1f} {unit}"
    return f"{count:.0f} bytes"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
