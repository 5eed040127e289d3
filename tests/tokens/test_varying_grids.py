"""Batches of a run whose grids vary: each of one grid, every row once, the same sequence after every interruption."""

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

from pipeline.errors import UsageError
from pipeline.exports.job import ExportConfig, export
from pipeline.exports.source import open_source
from pipeline.prior.corpus import Corpus
from pipeline.storage import Storage
from pipeline.tokens.dataset import Batch, TokenDataset
from pipeline.tokens.order import Sampling
from pipeline.tokens.parts import find_parts
from pipeline.tokens.schema import TokenSpec
from pipeline.tokens.states import merge_states
from tests.prior.cases import tiny_prior
from tests.support.token_runs import make_run

SAMPLES = (10, 7, 0, 23, 1)
GRIDS = ((2, 2), (1, 4), (4, 3), (2, 2), (3, 4))  # (1, 4) holds as many tokens as (2, 2), (4, 3) as (3, 4)
SPEC = TokenSpec(1024, 0, 0)
SMALL = Sampling(batch=3, buffer_rows=9)
Row = tuple[int, ...]


def grid_of(shard: int, sample: int, view: int) -> tuple[int, int]:
    """Of a row; the last grid is found in the first shard alone, twice."""
    return GRIDS[4] if shard == 0 and sample in (0, 9) else GRIDS[(shard + sample * sample + view) % 4]


def tokens_of(shard: int, sample: int, view: int, _: TokenSpec) -> np.ndarray:
    tokens = np.full(grid_of(shard, sample, view), 1000)
    tokens.flat[:3] = shard, sample, view
    return tokens


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """5 parts of 41 samples in row groups of 4."""
    return make_run(tmp_path_factory.mktemp("run"), SAMPLES, spec=SPEC, tokens=tokens_of)


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> str:
    """3 views of each of 41 samples."""
    return make_run(tmp_path_factory.mktemp("views"), SAMPLES, views=3, spec=SPEC, tokens=tokens_of)


def rows(batches: Iterable[Batch]) -> list[Row]:
    """(shard, sample, view) of each row, in order."""
    return [tuple(row[:3].tolist()) for batch in batches for row in batch["tokens"]]


def every(views: int = 1) -> list[Row]:
    return [(s, i, v) for s, count in enumerate(SAMPLES) for i in range(count) for v in range(views)]


def grid(batch: Batch) -> tuple[int, int]:
    """The grid of all rows of a batch."""
    (height,), (width,) = (set(batch[name].tolist()) for name in ("grid_height", "grid_width"))
    return height, width


@pytest.mark.parametrize("batch", [1, 3, 41, 1000])
@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_of_one_grid_hold_each_row_once(run: str, batch: int, world: int, shuffle: bool) -> None:
    parts, sampling = find_parts(Storage(), run), Sampling(batch=batch, shuffle=shuffle, buffer_rows=9)
    given = []
    for rank in range(world):
        batches = list(TokenDataset(parts, sampling, rank=rank, world=world))
        for some in batches:
            assert some["tokens"].shape[1] == np.prod(grid(some))
            assert all(grid_of(*row) == grid(some) for row in rows([some]))
        full = [len(some["tokens"]) == batch for some in batches]
        short = [grid(some) for some, is_full in zip(batches, full, strict=True) if not is_full]
        assert full == sorted(full, reverse=True), "what is left of the grids comes last"
        assert len(short) == len(set(short))
        given += rows(batches)
    assert sorted(given) == every()


def test_rows_come_in_the_order_of_the_sequence_when_their_batch_is_full(run: str) -> None:
    """Written down a second time: one row after the other, into a list for each grid."""
    lists: dict[tuple[int, int], list[Row]] = {}
    expected = []
    for row in rows(TokenDataset(run, SMALL.model_copy(update={"batch": 1}))):
        mine = lists.setdefault(grid_of(*row), [])
        mine.append(row)
        if len(mine) == SMALL.batch:
            expected += lists.pop(grid_of(*row))
    assert rows(TokenDataset(run, SMALL)) == expected + [row for mine in lists.values() for row in mine]


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("shuffle", [True, False])
def test_resumed_from_every_position(run: str, world: int, shuffle: bool) -> None:
    parts, sampling = find_parts(Storage(), run), SMALL.model_copy(update={"shuffle": shuffle})
    gaps = 0
    for rank in range(world):
        data = TokenDataset(parts, sampling, rank=rank, world=world)
        whole = [rows([batch]) for batch in data]
        for position in range(len(whole) + 1):
            before = TokenDataset(parts, sampling, rank=rank, world=world)
            assert [rows([batch]) for batch in islice(before, position)] == whole[:position]
            state = json.loads(json.dumps(before.state_dict()))
            gaps += len(state["left"]) > 1
            after = TokenDataset(parts, sampling, rank=rank, world=world)
            after.load_state_dict(state)
            assert [rows([batch]) for batch in after] == whole[position:]
    assert gaps, "rows waited while later ones were given"


@pytest.mark.parametrize("pace", [(0, 0, 0, 0), (1, 0, 2, 1), (9, 1, 0, 9)])
def test_elastic_resume(views: str, pace: tuple[int, ...]) -> None:
    """4 ranks, then 2, then 3, whatever each of them had given when it was stopped."""
    parts, given, state = find_parts(Storage(), views), [], None
    for world in (4, 2, 3):
        states = []
        for rank in range(world):
            data = TokenDataset(parts, SMALL, rank=rank, world=world)
            if state:
                data.load_state_dict(state)
            given += rows(islice(data, pace[rank] if world != 3 else None))
            states.append(data.state_dict())
        state = merge_states(states)
    assert state["left"] == []
    assert sorted(given) == every(3)


def test_one_view_of_each_sample(views: str) -> None:
    data = TokenDataset(views, Sampling(batch=4, buffer_rows=9, view="one"))
    given = []
    for epoch in range(3):
        data.set_epoch(epoch)
        given += rows(data)
    assert sorted(given) == every(3)


def test_batch_holds_what_the_rows_hold(run: str) -> None:
    for batch in TokenDataset(run, SMALL, columns=["key", "grid_width"], dtype=torch.int32):
        assert set(batch) == {"tokens", "grid_height", "grid_width", "key"}
        assert batch["tokens"].dtype == torch.int32
        assert batch["key"] == [f"{s}/{i}" for s, i, _ in rows([batch])]
        images = batch["tokens"].reshape(-1, *grid(batch))
        assert all(np.array_equal(image, tokens_of(*image.flatten()[:3].tolist(), SPEC)) for image in images)


def test_workers_of_a_loader(run: str) -> None:
    given = rows(DataLoader(TokenDataset(run, SMALL), batch_size=None, num_workers=2))
    assert sorted(given) == every()


@pytest.mark.system
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata calls it
def test_stateful_loader_with_workers_resumes(run: str) -> None:
    from torchdata.stateful_dataloader import StatefulDataLoader

    def loader() -> StatefulDataLoader:
        return StatefulDataLoader(TokenDataset(run, SMALL), batch_size=None, num_workers=2)

    batches, resumed = iter(interrupted := loader()), loader()
    given = rows(islice(batches, 5))
    resumed.load_state_dict(json.loads(json.dumps(interrupted.state_dict())))
    rest = rows(batches)
    assert rows(resumed) == rest
    assert sorted(given + rest) == every()


def test_what_needs_one_grid_says_so(run: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="drop_last must be false where grids vary"):
        TokenDataset(run, Sampling(drop_last=True))
    with pytest.raises(TypeError, match="no length before it is read"):
        len(TokenDataset(run))
    with pytest.raises(UsageError, match="grids of this run have several shapes"):
        Corpus(Storage(), find_parts(Storage(), run), tiny_prior())
    with pytest.raises(UsageError, match="which this format cannot hold; export it as hf"):
        export(open_source(Storage(), run), ExportConfig(format="bin", to=str(tmp_path)))


def test_export_for_hugging_face(run: str, tmp_path: Path) -> None:
    export(open_source(Storage(), run), ExportConfig(format="hf", to=str(tmp_path), rows_per_file=20))
    files = sorted((tmp_path / "data").iterdir())
    there = [row for file in files for row in pq.read_table(file).to_pylist()]
    assert [tuple(row["tokens"][:3]) for row in there] == every()
    assert all(len(row["tokens"]) == row["grid_height"] * row["grid_width"] for row in there)
