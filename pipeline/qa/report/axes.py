"""The frame of a plot: two scales with their ticks, drawn as SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

WIDTH, HEIGHT = 360, 210  # of the viewBox; pages show plots at about this size, on a phone too
LEFT, RIGHT, TOP, BOTTOM = 46, 18, 10, 38  # margins
TICKS = 6

_DRAWING = Markup(
    '<svg class="plot" viewBox="0 0 {0} {1}" role="img" aria-label="{2}. {3}">'
    "<title>{2}</title><desc>{3}</desc>{4}</svg>"
)
_LINE = Markup('<line class="{}" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>')
_TEXT = Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
_PATH = Markup('<path class="{}" d="M{}"/>')
_RECTANGLE = Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>')


@dataclass(frozen=True, slots=True)
class Scale:
    """One axis.

    Attributes:
        low, high: the range of values; positive on a logarithmic scale.
        log: whether it is logarithmic, to base 10.
        percent: whether its values are shares.
        ticks: (value, text); chosen by the range if empty.
    """

    label: str
    low: float
    high: float
    log: bool = False
    percent: bool = False
    ticks: Sequence[tuple[float, str]] = ()

    def at(self, value: float) -> float:
        """The place of a value as a fraction of the axis, kept to [0, 1]."""
        low, high, value = (math.log10(max(v, 1e-300)) if self.log else v for v in (self.low, self.high, value))
        return min(1.0, max(0.0, (value - low) / (high - low))) if high > low else 0.5

    def marks(self) -> Sequence[tuple[float, str]]:
        """Values and texts of the ticks."""
        if self.ticks:
            return self.ticks
        values = powers(self.low, self.high) if self.log else round_numbers(self.low, self.high)
        return [(value, share(value) if self.percent else compact(value)) for value in values]


@dataclass(frozen=True, slots=True)
class Frame:
    """A plot in the making: marks are added to `body`, `svg` closes it.

    Attributes:
        title, description: what a screen reader says of the plot.
    """

    title: str
    description: str
    x: Scale
    y: Scale
    body: list[Markup] = field(default_factory=list)

    def px(self, value: float) -> float:
        """Horizontal place of a value (units of the viewBox)."""
        return LEFT + self.x.at(value) * (WIDTH - LEFT - RIGHT)

    def py(self, value: float) -> float:
        """Vertical place of a value (units of the viewBox)."""
        return HEIGHT - BOTTOM - self.y.at(value) * (HEIGHT - TOP - BOTTOM)

    def rectangle(self, kind: str, left: float, right: float, top: float, bottom: float) -> None:
        """Add a rectangle between places on the page; it is at least one unit wide."""
        self.body.append(_RECTANGLE.format(kind, left, top, max(1.0, right - left), bottom - top))

    def path(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        """Add a line through (x, y) values."""
        steps = " L".join(f"{self.px(x):.1f} {self.py(y):.1f}" for x, y in points)
        self.body.append(_PATH.format(kind, steps))

    def svg(self) -> Markup:
        """The whole plot."""
        return drawing(self.title, self.description, [self._axes(), *self.body])

    def _axes(self) -> Markup:
        bottom, right, parts = HEIGHT - BOTTOM, WIDTH - RIGHT, []
        for value, text in self.y.marks():
            parts.append(_LINE.format("rule", LEFT, right, self.py(value), self.py(value)))
            parts.append(_TEXT.format(LEFT - 6, self.py(value) + 4, "end", text))
        parts.append(_LINE.format("axis", LEFT, right, bottom, bottom))
        for value, text in self.x.marks():
            parts.append(_LINE.format("axis", self.px(value), self.px(value), bottom, bottom + 4))
            parts.append(_TEXT.format(self.px(value), bottom + 16, "middle", text))
        parts.append(_TEXT.format((LEFT + right) / 2, HEIGHT - 4, "middle", self.x.label))
        return Markup().join(parts)


def drawing(title: str, description: str, shapes: Sequence[Markup]) -> Markup:
    """Shapes as one picture, with what a screen reader says of it."""
    return _DRAWING.format(WIDTH, HEIGHT, title, description, Markup().join(shapes))


def text_below(text: str) -> Markup:
    """A line of text at the foot of a picture."""
    return _TEXT.format(WIDTH / 2, HEIGHT - 4, "middle", text)


def round_numbers(low: float, high: float) -> list[float]:
    """About `TICKS` multiples of 1, 2 or 5 times a power of ten between `low` and `high`."""
    if not high > low:
        return [low]
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    return [step * n for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def powers(low: float, high: float) -> list[float]:
    """Powers of ten between `low` and `high`, thinned out to about `TICKS`; where there are few, 2 and 5 times them."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors, stride = (1, 2, 5) if high / low < 50 else (1,), -(-(last - first) // (TICKS + 1))
    values = [10.0**n * factor for n in range(first, last + 1, max(1, stride)) for factor in factors]
    return [value for value in values if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]


def compact(value: float) -> str:
    """A number for a tick: 1.5M instead of 1500000."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if suffix == 'k' else limit):.4g}{suffix}"
    return f"{round(value, 9):,.9f}".rstrip("0").rstrip(".")


def share(value: float) -> str:
    """A share for a tick, in percent."""
    return f"{compact(value * 100)}%"
