"""log.csv: one line per report; and curve.svg, the same to look at."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Point = tuple[float, float]
_WIDTH, _PANEL, _MARGIN = 640, 180, 48  # pixels
RED, BLUE, GREEN, GRAY = "#b4441f", "#1f6fb4", "#2a8a4a", "#888888"


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a plot: a column of the log.

    Attributes:
        column: its name.
        name: as it is called in the plot.
        color: as SVG knows it.
    """

    column: str
    name: str
    color: str


class Log:
    """The reports of a training, on disk and at hand.

    Args:
        folder: receives log.csv and curve.svg.
        step: steps done; lines of later ones, written before an interruption, are dropped.
        formats: of the columns, `step` among them; each report has these attributes.
        panels: the plots, by title.
    """

    def __init__(
        self, folder: Path, step: int, formats: Mapping[str, str], panels: Mapping[str, Sequence[Curve]]
    ) -> None:
        self._folder, self._path = folder, folder / "log.csv"
        self._formats, self._panels = formats, panels
        lines = []
        if step and self._path.exists():
            with open(self._path, newline="") as file:
                lines = [line for line in csv.DictReader(file) if int(line["step"]) <= step]
        self._rows: list[dict[str, str]] = lines
        self._write()

    def add(self, report: "DataclassInstance") -> None:
        """One more line; what is None stays empty."""
        values: dict[str, Any] = asdict(report)
        self._rows.append(
            {name: "" if values[name] is None else format(values[name], form) for name, form in self._formats.items()}
        )
        self._write()

    def draw(self) -> None:
        """Draws curve.svg anew."""
        if self._rows:
            panels = [
                _panel(title, [(curve, self._points(curve.column)) for curve in curves], number)
                for number, (title, curves) in enumerate(self._panels.items())
            ]
            replace_text(self._folder / "curve.svg", _svg(panels))

    def _points(self, name: str) -> list[Point]:
        return [(float(row["step"]), float(row[name])) for row in self._rows if row[name]]

    def _write(self) -> None:
        lines = [",".join(self._formats), *(",".join(row[name] for name in self._formats) for row in self._rows)]
        replace_text(self._path, "\n".join(lines) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Writes a file; it appears whole, in place of the old one."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _svg(panels: Sequence[str]) -> str:
    size = f'width="{_WIDTH}" height="{_PANEL * len(panels)}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12" fill="#333">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="#fff"/>', *panels, "</svg>", ""])


def _panel(title: str, curves: Sequence[tuple[Curve, list[Point]]], number: int) -> str:
    """One plot of curves over the steps; the lowest and highest value are written at its axis."""
    curves = [(curve, points) for curve, points in curves if points]
    last = max(points[-1][0] for _, points in curves)
    values = [value for _, points in curves for _, value in points]
    low, high = min(values), max(values)
    top, height = number * _PANEL + 28, _PANEL - 52
    width, spread = _WIDTH - 2 * _MARGIN, (high - low) or 1.0

    def place(point: Point) -> str:
        return f"{_MARGIN + width * point[0] / last:.1f},{top + height * (high - point[1]) / spread:.1f}"

    parts = [
        f'<text x="{_MARGIN}" y="{top - 10}" font-weight="bold">{title}</text>',
        f'<rect x="{_MARGIN}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#ccc"/>',
        f'<text x="{_MARGIN - 6}" y="{top + 10}" text-anchor="end">{high:.3g}</text>',
        f'<text x="{_MARGIN - 6}" y="{top + height}" text-anchor="end">{low:.3g}</text>',
        f'<text x="{_MARGIN + width}" y="{top + height + 16}" text-anchor="end">step {last:,.0f}</text>',
    ]
    for order, (curve, points) in enumerate(curves):
        color, line = curve.color, " ".join(map(place, points))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        x, y = place(points[-1]).split(",")
        parts.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{color}"/>')
        if len(curves) > 1:
            parts.append(f'<text x="{200 + 140 * order}" y="{top - 10}" fill="{color}">{curve.name}</text>')
    return "\n".join(parts)
