"""Whole runs over corpora with planted faults: what the gates stop, what they leave, what the next run makes of it."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.model import VQModel
from pipeline.qa.golden import make_golden, procedural_pictures, write_golden
from tests.qa.parts import DEMO_MODEL, photo_crops
from tests.qa.test_planted_faults import bgr, blanks, placeholders, squeezed
from tests.support.commands import last_json, parts, tokenmill
from tests.support.corpora import write_shard

pytestmark = pytest.mark.system
SIZE, SHARDS, SAMPLES = 96, 10, 40
PLANTED = 4  # the shard with the fault
SETTINGS = {"image.size": SIZE, "cluster.actors": 1, "qa.min_psnr": 12}


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def write_crops(folder: Path, faults: dict[int, Callable[[np.ndarray], np.ndarray]]) -> Path:
    """Shards of crops of photographs; some go through a fault."""
    folder.mkdir()
    for shard in range(SHARDS):
        crops = faults.get(shard, lambda pixels: pixels)(photo_crops(SAMPLES, SIZE, seed=shard))
        samples = {f"{shard}-{index:03d}": {"png": png(crop)} for index, crop in enumerate(crops)}
        write_shard(folder / f"{shard:05d}.tar", samples)
    return folder


def arguments(folder: Path, model: Path = DEMO_MODEL, **settings: object) -> list[object]:
    named = SETTINGS | {name.replace("__", "."): value for name, value in settings.items()}
    flags = [word for name, value in named.items() for word in ("--set", f"{name}={value}")]
    where = ["--shards", folder / "in", "--model", model, "--output", folder / "out"]
    return ["run", *where, *flags, "--json"]


def test_healthy_corpus(tmp_path: Path) -> None:
    write_crops(tmp_path / "in", {})
    result = tokenmill(*arguments(tmp_path))
    assert result.returncode == 0, result.stderr
    assert last_json(result)["gates"] == []
    evidence = {path.stem for path in (tmp_path / "out" / "qa").iterdir()}
    assert evidence == {name.removesuffix(".parquet") for name in parts(tmp_path / "out")}
    page = (tmp_path / "out" / "report" / "index.html").read_text()
    assert "Complete" in page
    assert "<svg" in page


@pytest.mark.parametrize(
    ("fault", "gate"),
    [
        (placeholders, "duplicate_grids"),
        (blanks, "constant_grids"),
        (bgr, "divergence"),
        (squeezed, "divergence"),
    ],
)
def test_planted_shard_is_named_and_ends_with_3(
    tmp_path: Path, fault: Callable[[np.ndarray], np.ndarray], gate: str
) -> None:
    write_crops(tmp_path / "in", {PLANTED: fault})
    result = tokenmill(*arguments(tmp_path, qa__on_fail="mark"))
    assert result.returncode == 3, result.stderr
    summary = last_json(result)
    assert summary["shards"]["committed"] == SHARDS, "marked, and gone on"
    assert [(finding["gate"], finding["where"][-9:]) for finding in summary["gates"]] == [(gate, f"{PLANTED:05d}.tar")]
    assert f"{PLANTED:05d}.tar" in result.stderr
    page = (tmp_path / "out" / "report" / "index.html").read_text()
    assert gate.replace("_", " ") in page.lower() or gate in page


def test_stopped_run_goes_on_only_when_told_to(tmp_path: Path) -> None:
    write_crops(tmp_path / "in", {PLANTED: placeholders})
    first = tokenmill(*arguments(tmp_path))
    assert first.returncode == 3, first.stderr
    there = parts(tmp_path / "out")
    assert 0 < len(there) < SHARDS
    again = tokenmill(*arguments(tmp_path))
    assert again.returncode == 3, "the bad part is still there"
    assert parts(tmp_path / "out") == there
    opened = tokenmill(*arguments(tmp_path, qa__max_duplicate_fraction="null"))
    assert opened.returncode == 0, opened.stderr
    assert last_json(opened)["gates"] == []
    assert len(parts(tmp_path / "out")) == SHARDS


def test_canary_is_judged_before_the_others_begin(tmp_path: Path) -> None:
    write_crops(tmp_path / "in", dict.fromkeys(range(SHARDS), placeholders))
    result = tokenmill(*arguments(tmp_path, cluster__actors=2, qa__canary_shards=2))
    assert result.returncode == 3, result.stderr
    assert len(parts(tmp_path / "out")) == 2


def test_wrong_checkpoint_begins_no_shard(tmp_path: Path) -> None:
    write_crops(tmp_path / "in", {})
    model = shutil.copytree(DEMO_MODEL, tmp_path / "model")
    right = VQModel.from_pretrained(model)
    right.quantize.embedding.weight.data = right.quantize.embedding.weight.data.roll(1, 0)  # another training's order
    write_golden(model / "golden.parquet", make_golden(right, procedural_pictures(SIZE)))
    result = tokenmill(*arguments(tmp_path, model))
    assert result.returncode == 3, result.stderr
    assert [finding["gate"] for finding in last_json(result)["gates"]] == ["golden_agreement"]
    assert parts(tmp_path / "out") == {}
