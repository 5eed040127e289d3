"""Efficiency over the size of the fleet, and where the rest went, as an SVG that needs nothing else."""

from collections.abc import Sequence

from markupsafe import Markup

from tests.benchmarks.scaling.simulate import Figures

WIDTH, HEIGHT, LEFT, TOP, PLOT, BAR = 760, 330, 60, 50, 220, 26
PARTS = {"useful": "#4f8cbf", "starts": "#c9b458", "repetition": "#b0413e", "waiting": "#c8ccd0"}
_TEXT = Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
_BAR = Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.2f}" fill="{}"/>')
_FRAME = Markup(
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" font-family="sans-serif" font-size="12" fill="#333" '
    'role="img" aria-label="{2}"><title>{2}</title><rect width="{0}" height="{1}" fill="#fff"/>'
    '<text x="12" y="22" font-weight="bold">{2}</text>{3}</svg>\n'
)


def picture(found: Sequence[Figures]) -> str:
    """Draw the paid GPU-hours of each fleet as one bar of 100 percent; a group of bars for each length of run."""
    body, groups = _axis(), sorted({figures.shards // figures.gpus for figures in found})
    room = (WIDTH - LEFT - 20) / len(groups)
    for number, per_gpu in enumerate(groups):
        fleets = [figures for figures in found if figures.shards // figures.gpus == per_gpu]
        left, step = LEFT + number * room, room / (len(fleets) + 0.5)
        body += _TEXT.format(left + room / 2, TOP + PLOT + 36, "middle", f"GPUs, {per_gpu} shards each")
        for place, figures in enumerate(fleets):
            body += _column(figures, left + (place + 0.5) * step)
    return str(_FRAME.format(WIDTH, HEIGHT, "Where paid GPU-hours go (simulated)", body + _legend()))


def _axis() -> Markup:
    return Markup("").join(
        _TEXT.format(LEFT - 8, TOP + PLOT * (1 - percent / 100) + 4, "end", f"{percent} %")
        for percent in range(0, 101, 25)
    )


def _column(figures: Figures, x: float) -> Markup:
    paid = figures.gpus * figures.hours
    shares = (figures.efficiency, figures.starting / paid, figures.repeated / paid, figures.idle / paid)
    body, bottom = Markup(""), TOP + PLOT
    for share, color in zip(shares, PARTS.values(), strict=True):
        height = PLOT * max(0.0, share)
        bottom -= height
        body += _BAR.format(x, bottom, BAR, height, color)
    middle = x + BAR / 2
    top = TOP + PLOT * (1 - figures.efficiency)
    body += _TEXT.format(middle, top + 16, "middle", f"{100 * figures.efficiency:.0f}")
    return body + _TEXT.format(middle, TOP + PLOT + 16, "middle", f"{figures.gpus:,}")


def _legend() -> Markup:
    body = Markup("")
    for number, (name, color) in enumerate(PARTS.items()):
        x = LEFT + 130 * number
        body += _BAR.format(x, HEIGHT - 16, 10, 10, color) + _TEXT.format(x + 16, HEIGHT - 7, "start", name)
    return body
