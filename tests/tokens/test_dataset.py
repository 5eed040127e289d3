"""Batches for training: every row once, the same sequence after every interruption, at any number of readers."""

import json
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from pipeline.errors import FingerprintMismatch, NotAPart, UsageError
from pipeline.storage import Storage
from pipeline.tokens.dataset import Batch, TokenDataset
from pipeline.tokens.order import Sampling
from pipeline.tokens.parts import find_parts
from pipeline.tokens.schema import ColumnsConfig, TokenSpec
from pipeline.tokens.states import merge_states
from pipeline.tokens.transforms import Captions, Offset, Prepend
from tests.support.s3 import S3
from tests.support.token_runs import make_run, telling_tokens

SAMPLES = (10, 7, 0, 23, 1)
SMALL = Sampling(batch=5, buffer_rows=9)
Row = tuple[int, ...]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """5 parts of 41 samples in row groups of 4."""
    return make_run(tmp_path_factory.mktemp("run"), SAMPLES)


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> str:
    """3 views of each of 41 samples."""
    return make_run(tmp_path_factory.mktemp("views"), SAMPLES, views=3)


def rows(batches: Iterator[Batch] | TokenDataset | DataLoader) -> list[Row]:
    """(shard, sample, view) of each row, in order."""
    return [tuple(row[:3].tolist()) for batch in batches for row in batch["tokens"]]


def every(views: int = 1) -> list[Row]:
    return [(s, i, v) for s, count in enumerate(SAMPLES) for i in range(count) for v in range(views)]


@pytest.mark.parametrize("batch", [1, 4, 41, 1000])
@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("shuffle", [True, False])
def test_readers_give_each_row_once(
    run: str, batch: int, workers: int, world: int, shuffle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers in this process: those of loaders are below."""
    sampling, parts = Sampling(batch=batch, shuffle=shuffle, buffer_rows=9), find_parts(Storage(), run)
    ranks = [TokenDataset(parts, sampling, rank=rank, world=world) for rank in range(world)]
    given = [[] for _ in ranks]
    for (rank, data), worker in product(enumerate(ranks), range(max(1, workers))):
        info = SimpleNamespace(id=worker, num_workers=workers, seed=worker) if workers else None
        monkeypatch.setattr("pipeline.tokens.dataset.get_worker_info", lambda info=info: info)
        given[rank] += data
    assert [len(rank) for rank in ranks] == [len(batches) for batches in given]
    assert sorted(row for batches in given for row in rows(batches)) == every()
    in_order = [row for batches in given for row in rows(batches)]
    assert (in_order == every()) == (not shuffle)


def test_batch_holds_what_the_rows_hold(views: str) -> None:
    columns = ["caption", "label", "key", "crop", "flip", "view", "shard"]
    batch = next(iter(TokenDataset(views, Sampling(batch=1000, buffer_rows=30), columns=columns)))
    assert {name: value.dtype for name, value in batch.items() if isinstance(value, torch.Tensor)} == {
        "tokens": torch.int64, "label": torch.int64, "crop": torch.float32, "flip": torch.bool, "view": torch.uint8,
    }  # fmt: skip
    assert batch["tokens"].shape == (123, 4)
    assert batch["crop"].shape == (123, 4)
    for n, (s, i, v) in enumerate(batch["tokens"][:, :3].tolist()):
        assert batch["tokens"][n].tolist() == telling_tokens(s, i, v, TokenSpec(1024, 2, 2)).reshape(-1).tolist()
        assert batch["caption"][n] == (None if i % 3 == 2 else f"caption {s} {i}")
        assert batch["label"][n] == (-1 if i % 7 == 6 else i % 5)
        assert (batch["key"][n], batch["view"][n], batch["flip"][n]) == (f"{s}/{i}", v, v % 2 == 1)
        assert (batch["crop"][n, 0], batch["shard"][n]) == (v, f"s3://corpus/{s:05}.tar")


@pytest.mark.parametrize("shuffle", [True, False])
def test_nulls_in_every_second_row_group(tmp_path: Path, shuffle: bool) -> None:
    """What a column becomes does not hang on which rows were read together."""
    columns = ColumnsConfig(fields={"f": "meta.f: float", "n": "meta.n: int", "ok": "meta.ok: bool"})

    def fields(sample: int) -> tuple[Any, ...]:
        return (None,) * 3 if sample % 8 == 5 else (sample / 2, sample, sample % 2 == 0)

    run = make_run(tmp_path, (16, 12), columns=columns, fields=fields)
    data = TokenDataset(run, Sampling(batch=4, buffer_rows=8, shuffle=shuffle), columns=[*columns.fields])
    for batch in data:
        kinds = [batch[name].dtype for name in columns.fields]
        assert kinds == [torch.float64, torch.int64, torch.int8]
        for i, *values in zip(batch["tokens"][:, 1].tolist(), *(batch[name] for name in columns.fields), strict=True):
            assert values[1:] == ([-1, -1] if i % 8 == 5 else [i, i % 2 == 0])
            assert values[0].isnan() if i % 8 == 5 else values[0] == i / 2


def test_epochs_differ_and_repeat(run: str) -> None:
    data = TokenDataset(run, SMALL)
    first = rows(data)
    assert rows(data) == first, "an epoch is the same each time"
    data.set_epoch(1)
    assert rows(data) != first
    assert sorted(rows(data)) == sorted(first)
    data.set_epoch(0)
    assert rows(data) == first


@pytest.mark.parametrize("world", [1, 2])
def test_resumed_from_every_position(run: str, world: int) -> None:
    parts = find_parts(Storage(), run)
    for rank in range(world):
        data = TokenDataset(parts, SMALL, rank=rank, world=world)
        data.set_epoch(3)
        whole = [rows([batch]) for batch in data]
        for position in range(len(whole) + 1):
            before = TokenDataset(parts, SMALL, rank=rank, world=world)
            before.set_epoch(3)
            assert [rows([batch]) for batch in islice(before, position)] == whole[:position]
            after = TokenDataset(parts, SMALL, rank=rank, world=world)
            after.load_state_dict(json.loads(json.dumps(before.state_dict())))
            assert [rows([batch]) for batch in after] == whole[position:]
            assert len(rows(after)) == len([row for batch in whole for row in batch]), "the next iteration is whole"


@pytest.mark.parametrize("view", ["all", "one", 2])
@pytest.mark.parametrize("pace", [(0, 0, 0, 0), (1, 0, 2, 1), (9, 1, 0, 9)])
def test_elastic_resume(views: str, view: str | int, pace: tuple[int, ...]) -> None:
    """4 ranks, then 2, then 3, whatever each of them had given when it was stopped."""
    parts, sampling = find_parts(Storage(), views), Sampling(batch=4, buffer_rows=9, view=view)
    given, state = [], None
    for world in (4, 2, 3):
        states = []
        for rank in range(world):
            data = TokenDataset(parts, sampling, rank=rank, world=world)
            if state:
                data.load_state_dict(state)
            given += rows(islice(data, pace[rank] if world != 3 else None))
            states.append(data.state_dict())
        state = merge_states(states)
    assert state["left"] == []
    expected = every(3) if view == "all" else [row for row in every(3) if view == "one" or row[2] == view]
    assert len(given) == len(set(given)) == (123 if view == "all" else 41)
    assert set(given) <= set(expected)


def test_state_at_the_end_of_an_epoch(run: str) -> None:
    data, resumed = TokenDataset(run, SMALL), TokenDataset(run, SMALL)
    first = rows(data)
    resumed.load_state_dict(data.state_dict())
    assert rows(resumed) == [], "nothing is left of it"
    assert rows(resumed) == first, "the next iteration is whole"
    resumed.load_state_dict(data.state_dict())
    resumed.set_epoch(1)
    data.set_epoch(1)
    assert rows(resumed) == rows(data) != first


def test_state_in_the_middle_of_another_epoch(run: str) -> None:
    data, resumed = TokenDataset(run, SMALL), TokenDataset(run, SMALL)
    data.set_epoch(2)
    given = rows(islice(data, 3))
    resumed.load_state_dict(data.state_dict())
    resumed.set_epoch(3)
    with pytest.raises(UsageError, match=r"in the middle of epoch 2.*set_epoch\(2\)"):
        list(resumed)
    resumed.set_epoch(2)
    assert given + rows(resumed) == rows(data)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"shuffle": False}, "shuffle was True, is False"),
        ({"buffer_rows": 10}, "buffer_rows was 9, is 10"),
        ({"view": 0}, "view was 'all', is 0"),
    ],
)
def test_state_of_another_order(run: str, change: dict, says: str) -> None:
    data = TokenDataset(run, SMALL.model_copy(update=change))
    with pytest.raises(UsageError, match=says):
        data.load_state_dict(TokenDataset(run, SMALL).state_dict())


def test_state_under_another_batch_size(run: str) -> None:
    data = TokenDataset(run, SMALL)
    given = rows(islice(data, 3))
    larger = TokenDataset(run, SMALL.model_copy(update={"batch": 16}))
    larger.load_state_dict(data.state_dict())
    assert given + rows(larger) == rows(TokenDataset(run, SMALL))


def test_state_of_other_data(run: str, views: str) -> None:
    with pytest.raises(UsageError, match="taken on other data"):
        TokenDataset(views, SMALL).load_state_dict(TokenDataset(run, SMALL).state_dict())
    state = TokenDataset(run, SMALL).state_dict()
    with pytest.raises(UsageError, match="another version of NumPy"):
        TokenDataset(run, SMALL).load_state_dict(state | {"order": state["order"] | {"checksum": 1}})
    with pytest.raises(UsageError, match="no state of a TokenDataset"):
        TokenDataset(run, SMALL).load_state_dict({"step": 3})


def test_state_of_another_reader(run: str) -> None:
    states = [TokenDataset(run, SMALL, rank=rank, world=2).state_dict() for rank in range(2)]
    with pytest.raises(UsageError, match="merge_states"):
        TokenDataset(run, SMALL, rank=0, world=3).load_state_dict(states[0])
    for some in (states[:1], [states[0], *states], [], [states[0], states[0]]):
        with pytest.raises(UsageError, match="merge_states"):
            merge_states(some)
    with pytest.raises(UsageError, match="agree in epoch"):
        merge_states([states[0], states[1] | {"epoch": 1}])
    with pytest.raises(UsageError, match="snapshot_every_n_steps=1"):
        merge_states([{"_steps_since_snapshot": 2, "x": states[0]}])


def test_run_at_work_is_read_as_far_as_it_was_listed(tmp_path: Path) -> None:
    run = make_run(tmp_path, (4, 3), finished=False)
    with pytest.raises(UsageError, match=r"not finished.*partial=True"):
        TokenDataset(run)
    listed = find_parts(Storage(), run, partial=True)
    data = TokenDataset(listed, SMALL)
    state = data.state_dict()
    make_run(tmp_path / "more", (4, 3, 5))
    for part in (tmp_path / "more" / "tokens").iterdir():
        if not (tmp_path / "tokens" / part.name).exists():
            part.rename(tmp_path / "tokens" / part.name)
    assert len(rows(data)) == 7, "parts that come later do not belong to it"
    now = find_parts(Storage(), run, partial=True)
    assert now.rows == 12
    with pytest.raises(UsageError, match="other data"):
        TokenDataset(now, SMALL).load_state_dict(state)
    again = find_parts(Storage(), run, only=[part.name for part in listed.parts])
    TokenDataset(again, SMALL).load_state_dict(state)


def test_part_replaced_after_it_was_listed(tmp_path: Path) -> None:
    data = TokenDataset(make_run(tmp_path, (9,)), SMALL)
    make_run(tmp_path / "other", (9,), group=5)
    part = next((tmp_path / "other" / "tokens").iterdir())
    part.replace(tmp_path / "tokens" / part.name)
    with pytest.raises(UsageError, match="replaced since the parts were listed"):
        list(data)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"columns": ["colour"]}, "columns must be among key, shard.*got colour"),
        ({"dtype": torch.int16}, "dtype must be"),
        ({"rank": 2, "world": 2}, r"rank must be in \[0, 2\), got 2"),
        ({"rank": 2}, "given together"),
    ],
)
def test_options_that_cannot_be(run: str, options: dict, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        TokenDataset(run, **options)


def test_places_that_are_no_run(tmp_path: Path, run: str) -> None:
    with pytest.raises(UsageError, match="not finished"):
        TokenDataset(str(tmp_path))
    with pytest.raises(UsageError, match="no parts under tokens/"):
        find_parts(Storage(), str(tmp_path), partial=True)
    with pytest.raises(UsageError, match=r"has no nothing\.parquet"):
        find_parts(Storage(), run, only=["nothing"])
    with pytest.raises(UsageError, match="hold no rows"):
        TokenDataset(make_run(tmp_path / "empty", (0,)))
    mixed = make_run(tmp_path / "mixed", (3, 3))
    make_run(tmp_path / "other", (1, 1, 1), spec=TokenSpec(64, 2, 2))
    for part in (tmp_path / "other" / "tokens").glob("00002*"):
        part.rename(tmp_path / "mixed" / "tokens" / part.name)
    with pytest.raises(FingerprintMismatch, match="made another way"):
        TokenDataset(mixed)
    (tmp_path / "mixed" / "tokens" / "x.parquet").write_bytes(b"junk")
    with pytest.raises(NotAPart, match=r"x\.parquet"):
        TokenDataset(mixed)


def test_rank_from_the_environment_of_torchrun(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert rows(TokenDataset(run, SMALL)) == rows(TokenDataset(run, SMALL, rank=1, world=2))
    monkeypatch.setenv("RANK", "one")
    with pytest.raises(UsageError, match="RANK and WORLD_SIZE"):
        TokenDataset(run)


def test_transforms(run: str) -> None:
    steps = [Offset(2000), Prepend(7), Captions(lambda texts: torch.tensor([len(text) for text in texts]))]
    batch = next(iter(TokenDataset(run, SMALL, transforms=steps)))
    plain = next(iter(TokenDataset(run, SMALL)))
    assert batch["tokens"].tolist() == [[7, *(token + 2000 for token in row)] for row in plain["tokens"].tolist()]
    assert batch["caption_tokens"].tolist() == [len(text or "") for text in plain["caption"]]
    labelled = Prepend(offset=5000)(plain | {"label": torch.tensor([1, 2, 3, 4, 5])})
    assert labelled["tokens"][:, 0].tolist() == [5001, 5002, 5003, 5004, 5005]
    assert labelled["tokens"].dtype == torch.int64


def test_label_that_is_missing() -> None:
    """-1 would be moved onto a token that means something else."""
    batch = {"tokens": torch.zeros(3, 2, dtype=torch.int64), "label": torch.tensor([4, -1, -1])}
    with pytest.raises(UsageError, match="2 of the 3 rows of a batch have no label"):
        Prepend(offset=100)(batch)
    assert Prepend(offset=100, missing=7)(batch)["tokens"].tolist() == [[104, 0, 0], [7, 0, 0], [7, 0, 0]]


def test_wide_codes_and_small_dtype(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        (5,),
        spec=TokenSpec(1 << 18, 2, 2),
        tokens=lambda s, i, v, spec: telling_tokens(s, i, v, spec) + 99_999,
    )
    batch = next(iter(TokenDataset(run, Sampling(batch=8, shuffle=False), dtype=torch.int32)))
    assert batch["tokens"].dtype == torch.int32
    assert batch["tokens"][:, 1].tolist() == [99_999 + i for i in range(5)]


def test_workers_of_a_plain_loader(run: str) -> None:
    """Two processes that outlive an epoch, on one of two ranks."""
    given = []
    for rank in range(2):
        data = TokenDataset(run, SMALL, rank=rank, world=2)
        loader = DataLoader(data, batch_size=None, num_workers=2, persistent_workers=True)
        epochs = []
        for epoch in range(2):
            data.set_epoch(epoch)
            epochs.append(rows(loader))
        assert epochs[0] != epochs[1]
        given.append(epochs)
    for epoch in range(2):
        assert sorted(given[0][epoch] + given[1][epoch]) == every()


@pytest.mark.system
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata calls it
@pytest.mark.parametrize("workers", [0, 2])
def test_stateful_loader_resumes_and_shrinks(run: str, workers: int) -> None:
    """Mid-epoch resume with the same workers; then both ranks' states go to one rank with another number of them."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    def loader(rank: int, world: int, count: int) -> tuple[TokenDataset, StatefulDataLoader]:
        data = TokenDataset(run, SMALL, rank=rank, world=world)
        return data, StatefulDataLoader(data, batch_size=None, num_workers=count)

    states, given = [], []
    for rank in range(2):
        data, stateful = loader(rank, 2, workers)
        data.set_epoch(2)
        batches = iter(stateful)
        given += rows(islice(batches, 2))
        states.append(json.loads(json.dumps(stateful.state_dict())))
        rest = rows(batches)
        over = stateful.state_dict()
        data, stateful = loader(rank, 2, workers)
        data.set_epoch(2)
        stateful.load_state_dict(states[-1])
        assert rows(stateful) == rest
        data.set_epoch(3)
        following = rows(stateful)
        assert len(following) > len(rest)
        data, stateful = loader(rank, 2, workers)
        stateful.load_state_dict(over)
        data.set_epoch(3)
        assert rows(stateful) == following, "resumed after the end of epoch 2"
    data, stateful = loader(0, 1, 1 - workers // 2)
    data.load_state_dict(merge_states(states))
    assert sorted(given + rows(stateful)) == every()


@pytest.mark.system
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata calls it
@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize(("workers", "kept"), [(0, False), (1, False), (2, False), (2, True)])
@pytest.mark.parametrize("stateful", [True, False])
def test_epochs_after_an_elastic_resume_are_whole(
    run: str, stateful: bool, workers: int, kept: bool, told: bool
) -> None:
    """A state loaded into the dataset is gone on from once, though each epoch's workers inherit it."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    states, given = [], []
    for rank in range(2):
        part = TokenDataset(run, SMALL, rank=rank, world=2)
        given += rows(islice(iter(part), 2))
        states.append(part.state_dict())
    data = TokenDataset(run, SMALL)
    data.load_state_dict(merge_states(states))
    kind = StatefulDataLoader if stateful else DataLoader
    loader = kind(data, batch_size=None, num_workers=workers, persistent_workers=kept)
    for epoch in range(3):
        if told:
            data.set_epoch(epoch)
        found = rows(loader)
        assert sorted(found if epoch else given + found) == every()


@pytest.mark.system
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata calls it
@pytest.mark.parametrize("workers", [0, 2])
def test_stateful_loader_resumes_at_every_position(run: str, workers: int) -> None:
    from torchdata.stateful_dataloader import StatefulDataLoader

    def loader() -> StatefulDataLoader:
        return StatefulDataLoader(TokenDataset(run, SMALL), batch_size=None, num_workers=workers)

    first, states, whole = loader(), [], []
    batches = iter(first)
    for _ in range(1 + len(TokenDataset(run, SMALL))):
        states.append(json.loads(json.dumps(first.state_dict())))
        whole += [rows([batch]) for batch in islice(batches, 1)]
    assert sorted(row for batch in whole for row in batch) == every()
    for position, state in enumerate(states):
        resumed = loader()
        resumed.load_state_dict(state)
        assert [rows([batch]) for batch in resumed] == whole[position:]


@pytest.mark.system
def test_workers_on_s3(s3: S3) -> None:
    run = make_run(f"{s3.make_bucket('readers')}/out", SAMPLES, group=20)
    data = TokenDataset(run, Sampling(batch=5, buffer_rows=25))
    assert sorted(rows(data)) == every()
    loader = DataLoader(data, batch_size=None, num_workers=2)
    assert sorted(rows(loader)) == every(), "processes forked from one that has spoken to the store"
