"""The plots of the report, each a function from numbers to SVG. Colours come from the page's style sheet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from pipeline.qa.report.axes import BOTTOM, HEIGHT, TOP, WIDTH, Frame, Scale, drawing, text_below
from pipeline.qa.report.estimate import Estimate, common_edges

CURVE_POINTS = 160  # of a sorted curve, evenly on its logarithmic axis
MAX_HEAT_SIDE = 32  # cells; larger grids are averaged down
SPEED_POINTS = 300
TIME_UNITS = ((2 * 3600, 3600, "hours"), (2 * 60, 60, "minutes"), (0, 1, "seconds"))  # from so many seconds on

_CELL = Markup('<rect class="cell" x="{0:.1f}" y="{1:.1f}" width="{2:.1f}" height="{2:.1f}" fill-opacity="{3:.2f}"/>')


@dataclass(frozen=True, slots=True)
class Series:
    """The values of one run; `kind` (a or b) decides the colour."""

    kind: str
    values: Sequence[float]
    mean: Estimate | None = None


def distribution(series: Sequence[Series], title: str, label: str) -> Markup:
    """Histograms over common bins, with the mean as a line and its confidence interval as a band."""
    edges = common_edges([one.values for one in series])
    counts = [np.histogram(one.values, edges)[0] for one in series]
    shares = [count / max(1, count.sum()) for count in counts]
    top = max(float(share.max()) for share in shares)
    spoken = "; ".join(f"{one.kind.upper()} mean {one.mean.mean:.4g}" for one in series if one.mean)
    frame = Frame(
        title,
        f"Histogram of values from {edges[0]:.4g} to {edges[-1]:.4g}; {spoken}",
        Scale(label, float(edges[0]), float(edges[-1])),
        Scale("", 0, top * 1.05, percent=True),
    )
    for one, share in zip(series, shares, strict=True):
        _band(frame, one)
        _bars(frame, edges, share, one.kind)
    for one in series:
        if one.mean:
            line = [(one.mean.mean, 0.0), (one.mean.mean, top * 1.05)]
            frame.path(line, "halo")
            frame.path(line, f"mean {one.kind}")
    return frame.svg()


def usage_curve(counts: Mapping[str, npt.NDArray[np.int64]]) -> Markup:
    """Codes sorted by frequency, on logarithmic axes: share of the tokens over rank.

    Args:
        counts: by kind (a or b), how often each code occurs; one of them must hold a token.
    """
    lines = {kind: _sorted_shares(count) for kind, count in counts.items() if count.sum()}
    low = min(line[-1][1] for line in lines.values())
    high = max(line[0][1] for line in lines.values())
    codes = max(len(count) for count in counts.values())
    used = ", ".join(
        f"{kind.upper()} uses {np.count_nonzero(counts[kind]):,} of {len(counts[kind]):,}" for kind in lines
    )
    frame = Frame(
        "Codes sorted by frequency",
        f"{used} codes; the most frequent has {high:.3%} of the tokens",
        Scale("rank of the code", 1, max(2, codes), log=True),
        Scale("share of tokens", low / 1.3, high * 1.3, log=True, percent=True),
    )
    even = 1 / codes
    frame.path([(1, even), (codes, even)], "even")
    for kind, line in lines.items():
        frame.path(line, f"line {kind}")
    return frame.svg()


def buckets(series: Mapping[str, Mapping[int, int]], title: str, label: str, ticks: Mapping[int, str]) -> Markup:
    """Bars over numbered buckets.

    Args:
        series: by kind (a or b), images by number of the bucket; at least one bucket.
        ticks: texts for the lower edges of some buckets.
    """
    numbers = [number for counts in series.values() for number in counts]
    first, last = min(numbers), max(numbers)
    edges = np.arange(first, last + 2, dtype=float)
    shares = {kind: np.array([counts.get(n, 0) for n in range(first, last + 1)]) for kind, counts in series.items()}
    shares = {kind: share / max(1, share.sum()) for kind, share in shares.items()}
    top = max(float(share.max()) for share in shares.values())
    shown = [(float(number), text) for number, text in ticks.items() if first <= number <= last + 1]
    images = sum(sum(counts.values()) for counts in series.values())
    frame = Frame(
        title,
        f"{images:,} images in {last - first + 1} buckets; the fullest holds {top:.0%}",
        Scale(label, first, last + 1, ticks=shown),
        Scale("", 0, top * 1.05, percent=True),
    )
    for kind, share in shares.items():
        _bars(frame, edges, share, kind)
    return frame.svg()


def heat(grid: npt.NDArray[np.float64], title: str, unit: str) -> Markup:
    """A grid of values [h, w] as squares from faint (the least) to full colour (the most)."""
    cells = _averaged(grid)
    low, high = float(cells.min()), float(cells.max())
    rows, columns = cells.shape
    text = f"{grid.shape[0]} by {grid.shape[1]} places, from {grid.min():.3g} to {grid.max():.3g} {unit}"
    side = (HEIGHT - TOP - BOTTOM + 20) / max(rows, columns)
    left = (WIDTH - side * columns) / 2
    parts: list[Markup] = []
    for (row, column), value in np.ndenumerate(cells):
        strength = 0.12 + 0.88 * (value - low) / (high - low) if high > low else 0.5
        parts.append(_CELL.format(left + column * side, TOP + row * side, side, strength))
    return drawing(title, text, [*parts, text_below(f"faint {low:.2f} to full {high:.2f} {unit}")])


def rate_over_time(ends: npt.NDArray[Any], rates: npt.NDArray[Any]) -> Markup:
    """Images per second over the time of a run (seconds)."""
    (times, unit), some = _in_units(ends), _thin(rates)
    top = float(max(some.max(), 1e-9))
    frame = Frame(
        "Throughput over time",
        f"{some.min():.4g} to {top:.4g} images/s over {times[-1]:.3g} {unit}",
        Scale(f"{unit} since the start", 0, times[-1]),
        Scale("images/s", 0, top * 1.05),
    )
    frame.path(_held(times, some), "line a")
    return frame.svg()


def busy_over_time(ends: npt.NDArray[Any], shares: Mapping[str, npt.NDArray[Any]]) -> Markup:
    """The share of each stage's lanes that was busy; the lines carry the classes s0, s1, ... in the order given."""
    times, unit = _in_units(ends)
    frame = Frame(
        "Busy share of each stage",
        "; ".join(f"{stage} {float(share.mean()):.0%} on average" for stage, share in shares.items()),
        Scale(f"{unit} since the start", 0, times[-1]),
        Scale("", 0, 1.05, percent=True),
    )
    for number, share in enumerate(shares.values()):
        frame.path(_held(times, _thin(share)), f"line s{number}")
    return frame.svg()


# --- marks -----------------------------------------------------------------------------------------------------------


def _bars(frame: Frame, edges: npt.NDArray[Any], shares: npt.NDArray[Any], kind: str) -> None:
    """Bars for the first run, an outline for the second, so that both can be seen."""
    steps = [(float(edge), float(share)) for i, share in enumerate(shares) for edge in edges[i : i + 2]]
    if kind == "b":
        frame.path([(float(edges[0]), 0.0), *steps, (float(edges[-1]), 0.0)], "line b")
        return
    for (low, share), (high, _) in zip(steps[::2], steps[1::2], strict=True):
        if share > 0:
            frame.rectangle("bar a", frame.px(low) + 0.5, frame.px(high) - 0.5, frame.py(share), frame.py(0))


def _band(frame: Frame, one: Series) -> None:
    if one.mean and one.mean.low is not None and one.mean.high is not None:
        left, right = frame.px(one.mean.low), frame.px(one.mean.high)
        frame.rectangle(f"band {one.kind}", left, right, TOP, HEIGHT - BOTTOM)


def _sorted_shares(counts: npt.NDArray[np.int64]) -> list[tuple[float, float]]:
    """(rank, share of tokens) of the codes that occur, most frequent first, at ranks even on a logarithmic axis."""
    ordered = np.sort(counts[counts > 0])[::-1] / counts.sum()
    ranks = np.unique(np.geomspace(1, len(ordered), CURVE_POINTS).round().astype(int))
    return [(float(rank), float(ordered[rank - 1])) for rank in ranks]


def _in_units(ends: npt.NDArray[Any]) -> tuple[list[float], str]:
    """Ends of the stretches (seconds) in a unit that suits the last one, and its name."""
    size, unit = next((size, unit) for least, size, unit in TIME_UNITS if ends[-1] >= least)
    return _thin(ends / size).tolist(), unit


def _held(times: Sequence[float], values: npt.NDArray[np.float64]) -> list[tuple[float, float]]:
    """(time, value) of each stretch at its end; the first one's value also at the start, where it began."""
    return [(0.0, float(values[0])), *zip(times, values.tolist(), strict=True)]


def _thin(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Means of at most `SPEED_POINTS` equal stretches."""
    return np.array([stretch.mean() for stretch in np.array_split(values, min(len(values), SPEED_POINTS))])


def _averaged(grid: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    for axis in (0, 1):
        pieces = np.array_split(grid, min(grid.shape[axis], MAX_HEAT_SIDE), axis)
        grid = np.stack([piece.mean(axis) for piece in pieces], axis)
    return grid
