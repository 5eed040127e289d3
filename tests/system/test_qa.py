"""Whole runs over corpora with and without planted faults: that the evidence of real actors reaches the gates.

What a gate that failed does to a run, and to the next, is in `test_driver`; which faults are caught, wherever they
come, in `tests/qa/test_planted_faults`.
"""

import io
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.model import VQModel
from tests.qa.parts import DEMO_MODEL, photo_crops
from tests.qa.test_planted_faults import blanks, placeholders, squeezed
from tests.support.commands import last_json, parts, tokenmill
from tests.support.corpora import write_shard

pytestmark = pytest.mark.system
SIZE, SHARDS, SAMPLES = 96, 10, 40
SETTINGS = {"image.size": SIZE, "cluster.actors": 1, "qa.min_psnr": 12}
PLANTED = {2: (placeholders, "duplicate_grids"), 4: (blanks, "constant_grids"), 6: (squeezed, "divergence")}


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def write_crops(folder: Path, faults: Mapping[int, Callable[[np.ndarray], np.ndarray]]) -> Path:
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
    result = tokenmill(*arguments(tmp_path, cluster__price_per_actor_hour=1200))
    assert result.returncode == 0, result.stderr
    assert last_json(result)["gates"] == []
    output = tmp_path / "out"
    evidence = {path.stem for path in (output / "qa").iterdir()}
    assert evidence == {name.removesuffix(".parquet") for name in parts(output)}
    assert "Complete" in (output / "report" / "index.html").read_text()
    speed = json.loads((output / "report" / "report.json").read_text())["runs"][0]["speed"]
    assert speed["images_per_second"] * speed["seconds"] == pytest.approx(SHARDS * SAMPLES)
    assert speed["cost"] == pytest.approx(speed["seconds"] / 3, rel=0.01)
    assert 0 < speed["device_busy"] <= 1


def test_planted_shards_are_named_and_the_marked_run_goes_on(tmp_path: Path) -> None:
    write_crops(tmp_path / "in", {shard: fault for shard, (fault, _) in PLANTED.items()})
    result = tokenmill(*arguments(tmp_path, qa__on_fail="mark"))
    assert result.returncode == 3, result.stderr
    summary = last_json(result)
    assert summary["shards"]["committed"] == SHARDS
    found = {int(Path(finding["where"]).stem): finding["gate"] for finding in summary["gates"]}
    assert found == {shard: gate for shard, (_, gate) in PLANTED.items()}
    assert len(summary["gates"]) == len(PLANTED)
    page = (tmp_path / "out" / "report" / "index.html").read_text()
    for shard, gate in found.items():
        assert f"{shard:05d}.tar" in result.stderr
        assert f'<th scope="row">{gate}</th>' in page


def test_wrong_checkpoint_begins_no_shard(tmp_path: Path) -> None:
    write_crops(tmp_path / "in", {})
    folder = shutil.copytree(DEMO_MODEL, tmp_path / "model")
    model = VQModel.from_pretrained(folder)
    model.quantize.embedding.weight.data = model.quantize.embedding.weight.data.roll(1, 0)  # another training's order
    model.save_pretrained(folder)  # beside the golden images of the right one
    result = tokenmill(*arguments(tmp_path, folder))
    assert result.returncode == 3, result.stderr
    assert [finding["gate"] for finding in last_json(result)["gates"]] == ["golden_agreement"]
    assert parts(tmp_path / "out") == {}
