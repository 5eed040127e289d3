"""What a person reads on the page, held against evidence made by hand."""

import base64
import html
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.qa.report import make_report
from pipeline.storage import Storage
from tests.qa.test_report import NOW
from tests.support.evidence_files import FINGERPRINT, RunCase, ShardCase, healthy, view


def page_of(case: RunCase, folder: Path) -> str:
    return make_report(Storage(), str(case.write(folder / "run")), now=NOW).page


def rows(page: str) -> dict[str, list[str]]:
    """Heading -> cells of every row of every table, as text."""
    found = re.findall(r'<tr[^>]*><th scope="row"[^>]*>(.*?)</th>(.*?)</tr>', page, re.DOTALL)
    return {text(head): [text(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", cells)] for head, cells in found}


def text(markup: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", markup)).split())


def test_accounts_by_reason(tmp_path: Path) -> None:
    case = healthy(3)
    case.shards[0].rejects, case.shards[2].rejects = {"truncated": 2, "too_large": 1}, {"truncated": 1}
    found = rows(page_of(case, tmp_path))
    assert [found[name] for name in ("samples", "tokenized", "rejected", "truncated", "too_large")] == [
        ["64"],
        ["60"],
        ["4"],
        ["3"],
        ["1"],
    ]


def test_accounts_with_what_was_filtered(tmp_path: Path) -> None:
    summary = {"samples": 66, "filtered": 6, "filtered_by_rule": {"min_side": 5, "keys": 1}}
    page = page_of(healthy(3, summary=summary), tmp_path)
    found = rows(page)
    assert [found[name] for name in ("samples", "tokenized", "rejected", "filtered, as was asked")] == [
        ["66"],
        ["60"],
        ["0"],
        ["6"],
    ]
    assert (found["min_side"], found["keys"]) == (["5"], ["1"])
    assert "Every sample is tokenized, rejected or filtered, once" in page


def test_metrics_with_their_interval(tmp_path: Path) -> None:
    """Four shards of one sample each: Student's t with three degrees of freedom, by hand."""
    psnrs = [20.0, 22.0, 24.0, 30.0]
    shards = [ShardCase(f"{number}", views=[view("k", 1, psnr=psnr)]) for number, psnr in enumerate(psnrs)]
    found = rows(page_of(RunCase(shards), tmp_path))["PSNR dB"]
    half = 3.1824 * np.std(psnrs, ddof=1) / 2
    assert found[:2] == ["24.00", f"{24 - half:.2f} to {24 + half:.2f}"]
    assert found[2:] == [f"{np.quantile(psnrs, share):.2f}" for share in (0.05, 0.5, 0.95)] + ["4"]


def test_codes_and_dead_codes(tmp_path: Path) -> None:
    counts = [8, 4, 2, 2] + 12 * [0]
    found = rows(page_of(RunCase([ShardCase("a", histogram=np.array(counts))]), tmp_path))
    assert [found[name] for name in ("codes", "used", "dead", "tokens counted")] == [
        ["16"],
        ["4 25.0%"],
        ["12"],
        ["16"],
    ]
    assert found["unigram entropy bits"] == ["1.750"]
    assert found["perplexity"] == [f"{2**1.75:.1f}"]
    assert found["most frequent code"] == ["50.0%"]


def test_sizes_and_aspects_are_summed_over_the_shards(tmp_path: Path) -> None:
    made = make_report(Storage(), str(healthy(3).write(tmp_path / "run")), now=NOW)
    run = made.document["runs"][0]
    assert (run["sizes"], run["aspects"]) == ({"256": 54, "362": 6}, {"-0.50": 3, "0.00": 57})
    for title in ("Short sides of the images", "Aspect ratios of the images"):
        assert f"<title>{title}</title><desc>60 images in " in made.page


def test_provenance(tmp_path: Path) -> None:
    found = rows(page_of(healthy(2), tmp_path))
    told = ("fingerprint", "weights", "precision", "image.recipe", "versions.torch", "tokenmill", "tokens")
    assert [found[name] for name in told] == [
        [FINGERPRINT],
        ["ab" * 32],
        ["exact"],
        ["center-crop"],
        ["2.13.0"],
        ["0.1.0"],
        ["4 x 4, 16 codes"],
    ]


def flat(level: int) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (32, 32), (level, level, level)).save(sink, "WEBP", lossless=True)
    return sink.getvalue()


@pytest.mark.parametrize(("original", "reconstruction", "shown"), [(100, 110, 40), (110, 100, 40), (0, 200, 255)])
def test_difference_is_four_times_what_was_lost(original: int, reconstruction: int, shown: int, tmp_path: Path) -> None:
    pictures = {"original": flat(original), "reconstruction": flat(reconstruction)}
    page = page_of(RunCase([ShardCase("a", views=[view("k", 1) | pictures])]), tmp_path)
    sources = re.findall(r'<img src="data:image/webp;base64,([^"]+)" alt="(\w+) of k"', page)
    levels = {label: np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).mean() for data, label in sources}
    assert list(levels) == ["original", "reconstruction", "difference"]
    assert levels["difference"] == pytest.approx(shown, abs=3)
