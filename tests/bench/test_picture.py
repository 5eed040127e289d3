"""The roofline's picture: an SVG that says what the figures say."""

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from pipeline.bench import Bench, picture
from pipeline.bench.picture import COLORS, TOGETHER

SVG = "{http://www.w3.org/2000/svg}"


def texts(found: Bench) -> str:
    return " | ".join(ElementTree.fromstring(picture(found)).itertext())


def test_everything_is_named_with_its_figure(found: Bench) -> None:
    shown = texts(found)
    for name, stage in found.stages.items():
        assert f"{name} | " in shown
        assert f"{stage.rate.median:,.1f}" in shown
        assert f"{name} {stage.cpu_ms.median:,.2f} ms" in shown
    assert f"bound {found.bound.median:,.1f}: the cores" in shown
    assert f"{found.fraction.median:.0%} of the bound" in shown


def test_costs_are_drawn_to_scale(found: Bench) -> None:
    rows = ElementTree.fromstring(picture(found)).findall(f"{SVG}rect")
    last = {bar.get("fill"): float(bar.get("width", 0)) for bar in rows if float(bar.get("height", 0)) == 16.0}
    costs = [stage.cpu_ms.median for stage in found.stages.values()]
    for color, cost in zip(COLORS, costs, strict=True):
        expected = last[TOGETHER] * cost / found.end_to_end_cpu_ms.median
        assert last[color] == pytest.approx(expected, abs=0.2)


def test_names_cannot_break_the_markup(found: Bench) -> None:
    assert "<b>&" in texts(replace(found, device="<b>&"))
