"""Runs whose grids have several shapes: batches by shape, rows in the order of the tar, lists of their own lengths."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.config import resolve
from pipeline.encoding import Precision
from pipeline.engine import Engine
from pipeline.engine.batches import Batch, InOrder
from pipeline.errors import ModelError
from pipeline.images import ImageConfig, prepare
from pipeline.model import VQModel
from pipeline.shards.manifest import freeze
from pipeline.storage import Storage
from pipeline.tokenize_shard import tokenize_shard
from pipeline.verify import verify
from pipeline.worker import Worker
from tests.support.corpora import jpeg, write_shard
from tests.support.finished_run import Draft, FinishedRun
from tests.support.lines import production_line

IMAGE = {"recipe": "buckets", "buckets": ("32x32", "24x40", "40x24")}
SIDES = [(64, 64), (90, 54), (54, 90), (90, 50), (64, 60), (70, 70), (50, 91)]
COUNT = 90  # more than a window


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples = {f"k{i:03}": {"jpg": jpeg(i, *SIDES[i % len(SIDES)])} for i in range(COUNT)}
    samples["k005"]["jpg"] = b"<html>"
    return write_shard(tmp_path_factory.mktemp("grids") / "x.tar", samples)


def tokenized(shard: Path, model: Path, output: Path, **options: object) -> Path:
    (frozen,) = freeze(Storage(), [str(shard)])
    with production_line(model, str(output), **IMAGE, **options) as line:
        counts = tokenize_shard(frozen, line).counts
    assert (counts.samples, counts.rows, counts.rejects) == (COUNT, COUNT - 1, 1)
    return output / "tokens" / f"{frozen.id}.parquet"


def test_rows_are_in_order_with_grids_of_their_own(shard: Path, tiny_model: Path, tmp_path: Path) -> None:
    table = pq.read_table(tokenized(shard, tiny_model, tmp_path))
    assert table.schema.field("tokens").type == pa.list_(pa.uint16())
    rows = table.to_pylist()
    assert [row["sample_index"] for row in rows] == [i for i in range(COUNT) if i != 5]
    assert {(row["grid_height"], row["grid_width"]) for row in rows} == {(8, 8), (6, 10), (10, 6)}
    model, config = VQModel.from_pretrained(tiny_model), ImageConfig(size=32, **IMAGE)
    for row in rows[::13]:
        pixels = prepare(jpeg(row["sample_index"], *SIDES[row["sample_index"] % len(SIDES)]), config).views[0].pixels
        with torch.inference_mode():
            expected = model.encode_indices(torch.from_numpy(pixels[None]))[0].numpy()
        found = np.array(row["tokens"]).reshape(row["grid_height"], row["grid_width"])
        assert found.shape == expected.shape
        assert np.mean(found == expected) > 0.98


def test_bytes_do_not_depend_on_the_batch_size(shard: Path, tiny_model: Path, tmp_path: Path) -> None:
    parts = [tokenized(shard, tiny_model, tmp_path / str(size), batch_size=size).read_bytes() for size in (1, 7, 64)]
    assert parts[0] == parts[1] == parts[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> FinishedRun:
    folder = tmp_path_factory.mktemp("grids")
    run = FinishedRun(folder / "shards", folder / "output")
    run.build(tiny_model, recipe="buckets", buckets=("32x32", "24x32"))
    return run


def test_run_of_several_shapes_is_verified(built: FinishedRun) -> None:
    result = verify(Storage(), str(built.output))
    assert result.ok, result.findings
    assert [account.rows for account in result.accounts] == [5, 4, 0]


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        (lambda draft: draft.rows[2].update(grid_height=3), ["wrong_grid"]),
        (lambda draft: draft.rows[2]["tokens"].pop(), ["wrong_grid"]),
        (lambda draft: draft.rows[2].update(grid_height=0, tokens=[]), ["wrong_grid"]),
        (lambda draft: draft.rows[2]["tokens"].append(65535), ["wrong_grid", "index_out_of_range"]),
    ],
    ids=["height", "short", "empty", "code"],
)
def test_wrong_grid_is_found(
    tmp_path: Path, built: FinishedRun, change: Callable[[Draft], object], kinds: list[str]
) -> None:
    shutil.copytree(built.output, tmp_path / "output")
    run = FinishedRun(built.shards, tmp_path / "output")
    run.edit(change)
    assert [finding.kind for finding in verify(Storage(), str(run.output)).findings] == kinds


def test_evidence_of_several_shapes(shard: Path, tiny_model: Path, tmp_path: Path) -> None:
    flags = {"model": str(tiny_model), "output": str(tmp_path), "qa.samples_per_shard": 12}
    settings = ["image.recipe=buckets", "image.buckets=[32x32, 24x40, 40x24]", "image.size=32"]
    worker = Worker(resolve(flags=flags, settings=settings, environment={}), 1, "cpu")
    assert worker.load().spec.varies
    frozen = freeze(Storage(), [str(shard)])
    calibration = worker.measure(frozen, 2)
    assert calibration is not None
    assert calibration.images > 5, "of the most frequent shape"
    assert worker.start("f" * 64, 2, Precision.EXACT) == 1.0
    report = tokenize_shard(frozen[0], worker.line)
    assert report.qa is not None
    assert report.qa.psnr is not None
    samples = pq.read_table(next((tmp_path / "qa").iterdir())).to_pylist()
    assert len(samples) >= 12


def batches(order: list[list[int]]) -> Iterator[tuple[Batch, np.ndarray]]:
    for places in order:
        yield Batch([f"row {place}" for place in places], np.empty(0), places), np.array(places)[:, None, None]


@pytest.mark.parametrize("order", [[[0, 1], [2]], [[2], [0, 1]], [[1, 4], [3], [0, 2]], [[4], [3], [2], [1], [0]]])
def test_rows_are_given_out_in_order(order: list[list[int]]) -> None:
    in_order, rows, grids = InOrder(), [], []
    for batch, tokens in batches(order):
        some, theirs = in_order.ready(batch, tokens)
        assert some == [f"row {len(rows) + i}" for i in range(len(some))]
        rows, grids = rows + some, grids + list(theirs)
    assert [int(grid[0, 0]) for grid in grids] == list(range(sum(map(len, order))))


def test_shapes_that_do_not_fit_the_model(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match=r"each side of the recipe's images must be a multiple of 4 .* got 6"):
        Engine(VQModel.from_pretrained(tiny_model), image_size=32, multiple=6)
