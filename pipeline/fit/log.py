"""log.csv: one line per report; and curve.svg, the same to look at."""

import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pipeline.fit.trainer import FitReport

_FORMATS = {
    "step": "d",
    "loss": ".5f",
    "psnr": ".3f",
    "usage": ".4f",
    "perplexity": ".1f",
    "held_out_psnr": ".3f",
    "held_out_usage": ".4f",
}
Point = tuple[float, float]
_WIDTH, _PANEL, _MARGIN = 640, 180, 48  # pixels
_COLORS = {"loss": "#b4441f", "training crops": "#1f6fb4", "held out": "#2a8a4a"}


class FitLog:
    """The reports of a training, on disk and at hand.

    Args:
        folder: receives log.csv and curve.svg.
        step: steps done; lines of later ones, written before an interruption, are dropped.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._folder, self._path = folder, folder / "log.csv"
        lines = []
        if step and self._path.exists():
            with open(self._path, newline="") as file:
                lines = [line for line in csv.DictReader(file) if int(line["step"]) <= step]
        self._rows: list[dict[str, str]] = lines
        self._write()

    def add(self, report: FitReport) -> None:
        """One more line."""
        values = asdict(report)
        self._rows.append({n: "" if values[n] is None else format(values[n], _FORMATS[n]) for n in _FORMATS})
        self._write()

    def draw(self) -> None:
        """Draws curve.svg anew."""
        if self._rows:
            losses = {"loss": self._points("loss")}
            psnrs = {"training crops": self._points("psnr"), "held out": self._points("held_out_psnr")}
            panels = [_panel("loss", losses, 0), _panel("PSNR (dB)", psnrs, 1)]
            _replace(self._folder / "curve.svg", _svg(panels))

    def _points(self, name: str) -> list[Point]:
        return [(float(row["step"]), float(row[name])) for row in self._rows if row[name]]

    def _write(self) -> None:
        lines = [",".join(_FORMATS), *(",".join(row[name] for name in _FORMATS) for row in self._rows)]
        _replace(self._path, "\n".join(lines) + "\n")


def _replace(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _svg(panels: Sequence[str]) -> str:
    size = f'width="{_WIDTH}" height="{_PANEL * len(panels)}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12" fill="#333">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="#fff"/>', *panels, "</svg>", ""])


def _panel(title: str, curves: dict[str, list[Point]], number: int) -> str:
    """One plot of curves over the steps; the lowest and highest value are written at its axis."""
    curves = {name: points for name, points in curves.items() if points}
    last = max(points[-1][0] for points in curves.values())
    values = [value for points in curves.values() for _, value in points]
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
    for order, (name, points) in enumerate(curves.items()):
        color, line = _COLORS[name], " ".join(map(place, points))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        x, y = place(points[-1]).split(",")
        parts.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{color}"/>')
        if len(curves) > 1:
            parts.append(f'<text x="{200 + 140 * order}" y="{top - 10}" fill="{color}">{name}</text>')
    return "\n".join(parts)
