"""The report in a real browser: what a person sees and does."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By

from pipeline.qa.report import make_report
from pipeline.storage import Storage
from tests.support.browser import browser, look
from tests.support.evidence_files import healthy

pytestmark = pytest.mark.system
NOW = datetime(2026, 11, 21, tzinfo=UTC)
FINDING = {"gate": "psnr", "where": "s3://corpus/00001.tar", "value": 6.0, "limit": 8.0, "message": "x" * 300}
PAGES, SCHEMES, WIDTHS = ["one", "two"], [False, True], [1280, 390]

# Contrast of every text with what is painted behind it (WCAG 2.2, 1.4.3); colours are opaque but for `none`.
FAINT_TEXTS = """
const channel = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const parts = colour => colour.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
const behind = e => {
  for (; e; e = e.parentElement) {
    const colour = parts(getComputedStyle(e).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour;
  }
  return [255, 255, 255];
};
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), faint = [];
let seen = 0;
for (let node; (node = texts.nextNode());) {
  const element = node.parentElement, style = getComputedStyle(element);
  if (!node.data.trim() || !element.getClientRects().length || element.closest("script, title, desc")) continue;
  const colour = parts(element.namespaceURI.endsWith("svg") ? style.fill : style.color);
  const [a, b] = [light(colour), light(behind(element))].sort((x, y) => y - x);
  seen++;
  if ((a + 0.05) / (b + 0.05) < 4.5) faint.push(node.data.trim() + ": " + (a + 0.05) / (b + 0.05));
}
return [seen, faint];
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report of one run, with a gate that failed, and one of two runs."""
    folder = tmp_path_factory.mktemp("report")
    first = healthy(12, views=4, summary={"gates": [FINDING]}).write(folder / "a-name-that-is-long" / "first")
    second = healthy(12, views=4, job={"tokenmill": "9"}).write(folder / "second")
    for name, other in (("one", None), ("two", str(second))):
        (folder / f"{name}.html").write_text(make_report(Storage(), str(first), other, now=NOW).page)
    return {name: folder / f"{name}.html" for name in PAGES}


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.mark.parametrize("dark", SCHEMES, ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_page_opens_whole(chrome: Chrome, pages: dict[str, Path], name: str, width: int, dark: bool) -> None:
    look(chrome, pages[name], width=width, dark=dark)
    assert chrome.get_log("browser") == []
    assert chrome.execute_script("return document.documentElement.scrollWidth") == width
    sizes = chrome.execute_script("return [...document.images].map(i => i.naturalWidth * i.complete)")
    assert len(sizes) > 30
    assert min(sizes) > 0
    assert (
        chrome.execute_script(
            "return performance.getEntriesByType('resource').filter(r => !/^data:/.test(r.name)).length"
        )
        == 0
    )


@pytest.mark.parametrize("dark", SCHEMES, ids=["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_every_text_stands_out(chrome: Chrome, pages: dict[str, Path], name: str, dark: bool) -> None:
    look(chrome, pages[name], dark=dark)
    chrome.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
    seen, faint = chrome.execute_script(FAINT_TEXTS)
    assert faint == []
    assert seen > 200


@pytest.mark.parametrize("name", PAGES)
def test_everything_has_words(chrome: Chrome, pages: dict[str, Path], name: str) -> None:
    look(chrome, pages[name])
    for nameless in (
        "img:not([alt]), img[alt='']",
        "svg:not([role='img']), svg:not([aria-label])",
        "svg:not(:has(> title)), svg:not(:has(> desc))",
        "table:not(:has(> caption)), table:not(:has(thead th[scope='col']))",
        "tbody tr:not(:has(th[scope='row']))",
    ):
        assert [e.get_attribute("outerHTML")[:200] for e in chrome.find_elements(By.CSS_SELECTOR, nameless)] == []
    ids = chrome.execute_script("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    targets = chrome.execute_script("return [...document.querySelectorAll('a[href^=\"#\"]')].map(e => e.hash.slice(1))")
    assert len(targets) > 8
    assert set(targets) <= set(ids)


def column(chrome: Chrome, number: int) -> list[str]:
    cells = chrome.find_elements(By.CSS_SELECTOR, f"table.sortable tbody tr > :nth-child({number})")
    return [cell.get_attribute("data-value") or cell.text for cell in cells]


def test_table_is_sorted_by_click_and_by_key(chrome: Chrome, pages: dict[str, Path]) -> None:
    look(chrome, pages["one"])
    heads = chrome.find_elements(By.CSS_SELECTOR, "table.sortable thead th")
    psnr = heads[3].find_element(By.TAG_NAME, "button")
    before = column(chrome, 4)
    for order, reverse in (("descending", True), ("ascending", False)):
        psnr.send_keys(Keys.ENTER) if reverse else psnr.click()
        after = column(chrome, 4)
        assert after == sorted(before, key=float, reverse=reverse) != before
        assert [head.get_attribute("aria-sort") for head in heads] == ["none"] * 3 + [order] + ["none"] * 4
    heads[0].find_element(By.TAG_NAME, "button").click()
    assert column(chrome, 1) == sorted(column(chrome, 1))


def test_pictures_are_enlarged_and_stepped_through_by_keys(chrome: Chrome, pages: dict[str, Path]) -> None:
    look(chrome, pages["one"])
    dialog = chrome.find_element(By.ID, "zoom")
    first = chrome.find_element(By.CSS_SELECTOR, ".exhibit .zoom")
    first.send_keys(Keys.ENTER)
    assert dialog.is_displayed()
    shown = dialog.find_elements(By.TAG_NAME, "img")
    assert [picture.get_attribute("data-label") for picture in shown] == ["original", "reconstruction", "difference"]
    assert shown[0].size["width"] > 2 * first.find_element(By.TAG_NAME, "img").size["width"]
    title = dialog.find_element(By.ID, "zoom-title").text
    for key, same in ((Keys.ARROW_RIGHT, False), (Keys.ARROW_LEFT, True), (Keys.ARROW_LEFT, False)):
        chrome.switch_to.active_element.send_keys(key)
        assert (dialog.find_element(By.ID, "zoom-title").text == title) is same
    chrome.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not dialog.is_displayed()
    assert chrome.switch_to.active_element.get_attribute("class") == "zoom"


def test_pictures_are_enlarged_by_click_and_closed_by_button(chrome: Chrome, pages: dict[str, Path]) -> None:
    look(chrome, pages["two"], width=390)
    dialog = chrome.find_element(By.ID, "zoom")
    chrome.find_element(By.CSS_SELECTOR, ".exhibit .zoom").click()
    assert len(dialog.find_elements(By.TAG_NAME, "img")) == 5
    dialog.find_element(By.CSS_SELECTOR, "[aria-label='Close']").click()
    assert not dialog.is_displayed()


@pytest.mark.parametrize("width", WIDTHS)
def test_findings_of_gates_are_in_sight(chrome: Chrome, pages: dict[str, Path], width: int) -> None:
    look(chrome, pages["one"], width=width)
    finding = chrome.find_element(By.CSS_SELECTOR, ".gates tbody td:last-child")
    assert finding.text == FINDING["message"]
    assert 0 < finding.rect["x"] < finding.rect["x"] + finding.rect["width"] < width


def test_gate_leads_to_its_shard(chrome: Chrome, pages: dict[str, Path]) -> None:
    look(chrome, pages["one"])
    chrome.find_element(By.CSS_SELECTOR, ".verdict td a").click()
    row = chrome.find_element(By.CSS_SELECTOR, "tr:target")
    assert row.get_attribute("class") == "accused"
    assert row.text.startswith("00001-")
