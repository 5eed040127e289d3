"""Recipes of several views: each is a row of its own, and the accounts still count samples."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.config import resolve
from pipeline.errors import UsageError
from pipeline.storage import Storage
from pipeline.verify import FindingKind, verify
from tests.support.finished_run import Draft, FinishedRun

VIEWS = 10


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> FinishedRun:
    folder = tmp_path_factory.mktemp("views")
    run = FinishedRun(folder / "shards", folder / "output")
    run.build(tiny_model, recipe="llamagen-tencrop-1.1")
    return run


def findings(run: FinishedRun) -> list[FindingKind]:
    return [finding.kind for finding in verify(Storage(), str(run.output)).findings]


def test_each_view_is_a_row_in_order(built: FinishedRun) -> None:
    rows = pq.read_table(built.part()).to_pylist()
    assert [(row["sample_index"], row["view"]) for row in rows] == [
        (sample, view) for sample in (0, 1, 3, 4, 5) for view in range(VIEWS)
    ]
    assert [row["flip"] for row in rows[:VIEWS]] == [False] * 5 + [True] * 5
    assert len({tuple(row["crop"]) for row in rows[:5]}) == 5
    assert len({bytes(np.array(row["tokens"], np.uint16)) for row in rows[:VIEWS]}) == VIEWS


def test_accounts_count_samples_and_rows_apart(built: FinishedRun) -> None:
    result = verify(Storage(), str(built.output))
    assert result.ok, result.findings
    assert [(account.samples, account.rows, account.rejects) for account in result.accounts] == [
        (6, 5 * VIEWS, 1),
        (4, 4 * VIEWS, 0),
        (0, 0, 0),
    ]


def drop_a_view(draft: Draft) -> None:
    del draft.rows[13]
    draft.set("counts", rows=len(draft.rows))


def repeat_a_view(draft: Draft) -> None:
    draft.rows[13] = draft.rows[14]


@pytest.mark.parametrize(
    ("change", "kinds"),
    [(drop_a_view, ["missing_views"]), (repeat_a_view, ["duplicate_samples", "missing_views"])],
)
def test_view_lost_or_repeated_is_found(tmp_path: Path, built: FinishedRun, change, kinds: list[str]) -> None:
    copy = tmp_path / "output"
    shutil.copytree(built.output, copy)
    run = FinishedRun(built.shards, copy)
    run.edit(change)
    assert findings(run) == kinds


def job(**flags: object):
    return resolve(flags={"shards": ["x.tar"], "model": "m", "output": "o", **flags}, environment={})


@pytest.mark.parametrize("recipe", ["open-muse", "amused", "maskgit-vqgan"])
def test_recipe_for_another_value_range_than_the_model(recipe: str) -> None:
    with pytest.raises(UsageError, match=rf"model.value_range must be 0\.\.1 for image.recipe {recipe}.* got -1\.\.1"):
        job(**{"image.recipe": recipe})
    assert job(**{"image.recipe": recipe, "model.value_range": "0..1"}).image.recipe == recipe


def test_recipe_of_signed_pixels_for_a_model_of_unit_ones() -> None:
    with pytest.raises(UsageError, match=r"must be -1\.\.1 for image.recipe 4m"):
        job(**{"image.recipe": "4m", "model.value_range": "0..1"})
    assert job(**{"model.value_range": "0..1"}).image.recipe == "center-crop"


@pytest.mark.parametrize(
    ("consumer", "recipe", "value_range"),
    [
        ("LlamaGen", "llamagen-tencrop-1.1", "-1..1"),
        ("LlamaGen", "llamagen-tencrop-1.05", "-1..1"),
        ("LlamaGen, text", "llamagen-center-flip", "-1..1"),
        ("RAR, TiTok", "llamagen-tencrop-1.1", "0..1"),
        ("RAR, TiTok", "llamagen-center-flip", "0..1"),
        ("4M", "4m", "-1..1"),
        ("open-muse", "open-muse", "0..1"),
        ("Halton-MaskGIT", "center-crop", "-1..1"),
    ],
)
def test_what_each_consumer_trains_on_can_be_made(consumer: str, recipe: str, value_range: str) -> None:
    made = job(**{"image.recipe": recipe, "model.value_range": value_range})
    assert (made.image.recipe, made.model.value_range) == (recipe, value_range), consumer
