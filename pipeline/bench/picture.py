"""The roofline as a picture: an SVG that needs nothing else.

Above, images/s on a logarithmic axis: each stage alone, all of them together, and the bound. Below, CPU time per image:
the stages end to end, and what a run takes for the same work.
"""

import math
from collections.abc import Callable, Mapping

from markupsafe import Markup

from pipeline.bench.figures import Bench
from pipeline.bench.measure import Spread

WIDTH, LEFT, RIGHT = 760, 84, 170  # of the viewBox and its margins; values are written into the right one
TOP, ROW, BAR, GAP, FOOT = 58, 26, 16, 70, 48
COLORS = ("#a9c4dd", "#7fa8cc", "#4f8cbf", "#1f5f99", "#8dbd8d", "#c9b458")
TOGETHER, BOUND, RULE = "#c2571a", "#222", "#ddd"

_FRAME = Markup(
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1:.0f}" font-family="sans-serif" font-size="12" '
    'fill="#333" role="img" aria-label="{2}"><title>{2}</title><rect width="{0}" height="{1:.0f}" fill="#fff"/>'
    '<text x="12" y="22" font-weight="bold">{2}</text>{3}</svg>\n'
)
_TEXT = Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
_BAR = Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill="{}"/>')
_LINE = Markup('<line x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}" stroke="{}" stroke-width="{}"/>')

Place = Callable[[float], float]  # of a value on the horizontal axis


def picture(found: Bench) -> str:
    """Draw what a benchmark found."""
    title = (
        f"{found.device}, {found.cores} cores, {found.image_size} px: {found.end_to_end.median:,.1f} images/s "
        f"end to end, {found.fraction.median:.0%} of the bound"
    )
    middle = TOP + ROW * (len(found.stages) + 1) + GAP
    return str(_FRAME.format(WIDTH, middle + 2 * ROW + FOOT, title, _rates(found) + _costs(found, middle)))


def _rates(found: Bench) -> Markup:
    rates = {**{name: stage.rate for name, stage in found.stages.items()}, "together": found.end_to_end}
    low = math.floor(math.log10(min(spread.low for spread in rates.values()) / 2))
    high = math.ceil(math.log10(max(spread.high for spread in rates.values())))
    bottom = TOP + ROW * len(rates)

    def place(rate: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log10(rate) - low) / (high - low)

    shapes = [_TEXT.format(12, TOP - 14, "start", "images/s, each stage alone and all together, logarithmic")]
    for power in range(low, high + 1):
        shapes.append(_LINE.format(place(10.0**power), place(10.0**power), TOP, bottom, RULE, 1))
        shapes.append(_TEXT.format(place(10.0**power), bottom + 15, "middle", f"{10.0**power:,g}"))
    for number, (name, spread) in enumerate(rates.items()):
        color = TOGETHER if name == "together" else COLORS[number]
        shapes.append(_row(name, spread, TOP + ROW * number, color, place))
    bound = place(found.bound.median)
    shapes.append(_LINE.format(bound, bound, TOP - 4, bottom + 20, BOUND, 1.5))
    shapes.append(_TEXT.format(bound, bottom + 32, "middle", f"bound {found.bound.median:,.1f}: the {found.limit}"))
    return Markup().join(shapes)


def _row(name: str, spread: Spread, top: float, color: str, place: Place) -> Markup:
    """A bar to the median, a line from the lowest to the highest value, and the median in figures."""
    left, middle = place(spread.low), top + ROW / 2
    return Markup().join(
        (
            _TEXT.format(LEFT - 8, middle + 4, "end", name),
            _BAR.format(LEFT, middle - BAR / 2, place(spread.median) - LEFT, BAR, color),
            _LINE.format(left, place(spread.high), middle, middle, BOUND, 1),
            _TEXT.format(WIDTH - RIGHT + 10, middle + 4, "start", f"{spread.median:,.1f}"),
        )
    )


def _costs(found: Bench, top: float) -> Markup:
    stages = {name: stage.cpu_ms.median for name, stage in found.stages.items()}
    sums = {"stages": sum(stages.values()), "together": found.end_to_end_cpu_ms.median}
    scale = (WIDTH - LEFT - RIGHT) / max(sums.values())
    shapes = [_TEXT.format(12, top - 10, "start", "CPU time per image: the stages alone, and all together")]
    at = float(LEFT)
    for number, cost in enumerate(stages.values()):
        shapes.append(_BAR.format(at, top + (ROW - BAR) / 2, cost * scale, BAR, COLORS[number]))
        at += cost * scale
    shapes.append(_BAR.format(LEFT, top + ROW + (ROW - BAR) / 2, sums["together"] * scale, BAR, TOGETHER))
    for number, (name, value) in enumerate(sums.items()):
        middle = top + ROW * number + ROW / 2 + 4
        shapes.append(_TEXT.format(LEFT - 8, middle, "end", name))
        shapes.append(_TEXT.format(WIDTH - RIGHT + 10, middle, "start", f"{value:,.2f} ms"))
    shapes.append(_legend(stages, top + 2 * ROW + 24))
    return Markup().join(shapes)


def _legend(stages: Mapping[str, float], baseline: float) -> Markup:
    shapes, width = [], (WIDTH - 24) / len(stages)
    for number, (name, cost) in enumerate(stages.items()):
        shapes.append(_BAR.format(12 + width * number, baseline - 10, 10, 10, COLORS[number]))
        shapes.append(_TEXT.format(26 + width * number, baseline, "start", f"{name} {cost:,.2f} ms"))
    return Markup().join(shapes)
