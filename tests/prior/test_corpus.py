"""The split of a run's rows, and what a census finds."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import UsageError
from pipeline.prior.corpus import Census, Corpus
from pipeline.storage import Storage
from pipeline.tokens.parts import find_parts
from pipeline.training.device import memory_bytes
from tests.prior.cases import tiny_prior
from tests.support.token_runs import make_run

SAMPLES = (40, 23)
Row = tuple[int, ...]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """63 samples whose tokens tell shard, sample and view."""
    return make_run(tmp_path_factory.mktemp("run"), SAMPLES)


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> str:
    """3 views of each of 63 samples."""
    return make_run(tmp_path_factory.mktemp("views"), SAMPLES, views=3)


def corpus(url: str, **changes: Any) -> Corpus:
    return Corpus(Storage(), find_parts(Storage(), url), tiny_prior(**{"batch_size": 5, **changes}))


def told(tokens: torch.Tensor) -> list[Row]:
    return [tuple(row[:3].tolist()) for row in tokens]


def epoch(of: Corpus, census: Census) -> list[Row]:
    """The rows of one epoch, as they come."""
    rows, batches = list[Row](), of.batches()
    while len(rows) < census.rows:
        rows += told(next(batches)["tokens"])
    return rows


@pytest.mark.parametrize("changes", [{}, {"seed": 7}, {"hold_out": 0.6}, {"hold_out_by": "sample_index"}], ids=str)
def test_every_row_is_on_one_side_once(run: str, changes: dict[str, Any]) -> None:
    rows = corpus(run, **changes)
    census = rows.take_census()
    trained, held = epoch(rows, census), told(census.tokens)
    assert (len(trained), len(held)) == (census.rows, census.held_out_rows)
    assert sorted(trained + held) == [(s, i, 0) for s, count in enumerate(SAMPLES) for i in range(count)]
    assert trained != sorted(trained)


def test_split_follows_the_seed_alone(run: str) -> None:
    held = {seed: told(corpus(run, seed=seed).take_census().tokens) for seed in (0, 1)}
    assert held[0] == told(corpus(run, seed=0, batch_size=9, steps=3).take_census().tokens)
    assert held[0] != held[1]
    assert 4 <= len(held[0]) <= 24


@pytest.mark.parametrize("by", ["meta.i", "sample_index"])
def test_groups_are_held_out_together(run: str, by: str) -> None:
    """Sample i of both shards has `i` in its sidecar."""
    held = told(corpus(run, hold_out_by=by).take_census().tokens)
    assert {i for s, i, _ in held if s == 1} == {i for s, i, _ in held if s == 0 and i < SAMPLES[1]} != set()


@pytest.mark.parametrize(("view", "mine", "theirs"), [("all", 3, 3), ("one", 1, 3), (2, 1, 1)])
def test_views_of_a_sample_stay_together(views: str, view: int | str, mine: int, theirs: int) -> None:
    rows = corpus(views, view=view)
    census = rows.take_census()
    held = told(census.tokens)
    samples = {row[:2] for row in held}
    assert len(held) == theirs * len(samples)
    one_epoch = list(islice((row for batch in rows.batches() for row in told(batch["tokens"])), mine * 40))
    assert not samples & {row[:2] for row in one_epoch}


def test_measured_rows_are_limited(run: str) -> None:
    census = corpus(run, hold_out=0.5, hold_out_rows=4).take_census()
    assert len(census.tokens) == len(census.conditions) == 4 < census.held_out_rows


@pytest.mark.parametrize("taken", range(0, 27, 3))
def test_batches_go_on_where_they_were(run: str, taken: int) -> None:
    """Also at the end of an epoch and in the next one."""
    whole = [told(batch["tokens"]) for batch in islice(corpus(run).batches(), 30)]
    first, second = corpus(run), corpus(run)
    batches = first.batches()
    seen = [told(next(batches)["tokens"]) for _ in range(taken)]
    second.restore(first.state())
    rest = [told(batch["tokens"]) for batch in islice(second.batches(), 30 - taken)]
    assert seen + rest == whole


def test_labels_are_conditions_and_none_where_there_is_none(run: str) -> None:
    """Labels are i modulo 5, and every seventh sample has none."""
    rows = corpus(run, condition="label")
    census = rows.take_census()
    assert census.classes == 5
    expected = [5 if i % 7 == 6 else i % 5 for _, i, _ in told(census.tokens)]
    assert census.conditions.tolist() == expected
    assert corpus(run).take_census().classes == 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hold_out": 1e-9}, "hold_out must leave rows on both sides, got 63 to train on and 0 held out"),
        ({"hold_out": 1 - 1e-9}, "hold_out must leave rows on both sides, got 0 to train on and 63 held out"),
        ({"hold_out_by": "photo"}, r"columns must be among .*; got photo"),
        ({"hold_out_by": "meta.photo"}, "hold_out_by=meta.photo: a row has no such value"),
        (
            {"hold_out_by": "tokens"},
            "hold_out_by must be a column of texts or whole numbers.* got tokens, where tokens",
        ),
        ({"hold_out_by": "crop"}, "got crop, where crop is of type fixed_size_list"),
        ({"hold_out_by": "label.x"}, "got label.x, where label is of type int64"),
        ({"view": 3}, r"view must be in \[0, 1\), got 3"),
    ],
)
def test_split_that_cannot_be(run: str, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        corpus(run, **changes).take_census()


def test_labels_that_are_no_classes(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.prior.corpus._MOST_CLASSES", 4)
    with pytest.raises(UsageError, match="needs labels from 0 to at most 3, got -1 as the lowest and 4 as the highest"):
        corpus(run, condition="label").take_census()


def test_labels_below_the_one_that_is_none(tmp_path: Path) -> None:
    """-2 would be the last code but one."""
    run = make_run(tmp_path, SAMPLES, first_label=-2)
    with pytest.raises(UsageError, match=r"needs labels from 0 .*, got -2 as the lowest and 2 as the highest"):
        corpus(run, condition="label").take_census()


@pytest.mark.parametrize(
    ("memory", "changes", "says"),
    [
        (16_383, {}, "for the counts of the baselines; train on a run of fewer codes"),
        (245_759, {}, "4 places x 1,024 codes must fit into memory.* for batch_size=5; make it smaller"),
        (245_760, {"kind": "maskgit", "pictures": 4}, "for pictures=4; make it smaller"),
        (262_144, {"kind": "maskgit", "pictures": 4, "guidance": 2, "condition": "label"}, "for pictures=4"),
    ],
)
def test_codes_that_memory_cannot_hold(
    run: str, memory: int, changes: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 places x 1,024 codes x 4 bytes: 16,384 bytes for each number of each."""
    monkeypatch.setattr("pipeline.prior.corpus.memory_bytes", lambda _: memory)
    with pytest.raises(UsageError, match=says):
        corpus(run, **changes)
    monkeypatch.setattr("pipeline.prior.corpus.memory_bytes", lambda _: 16 * memory)
    corpus(run, **changes)


def test_memory_of_this_machine() -> None:
    assert 1 << 28 < memory_bytes(torch.device("cpu")) < 1 << 50
