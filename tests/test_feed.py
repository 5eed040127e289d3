"""Shards that another actor reads: the same part, the same accounts, failures as values. Without Ray, but pickled."""

import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config import resolve
from pipeline.decoder import Decoder
from pipeline.feed import Accounts, Attempt, Chunk, Fed, FeedFailed, chunks
from pipeline.images import resampler
from pipeline.messages import ShardReport
from pipeline.meter import Meter, Part
from pipeline.schedule import Failure, Kind
from pipeline.shards.manifest import Shard, freeze
from pipeline.storage import Storage
from pipeline.tokenize_shard import Line, tokenize_shard
from tests.support.corpora import sample, write_shard
from tests.support.lines import production_line


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    """Ten samples, of which one is no image."""
    samples = {f"{number:04d}": sample(0, number) for number in range(10)}
    samples["0004"]["jpg"] = b"no image"
    write_shard(tmp_path / "in.tar", samples)
    return freeze(Storage(), [str(tmp_path / "in.tar")])[0]


@pytest.fixture(params=["center-crop", "buckets"])
def line(request: pytest.FixtureRequest, tiny_model: Path, tmp_path: Path) -> Iterator[Line]:
    with production_line(tiny_model, str(tmp_path / "here"), recipe=request.param) as line:
        yield line


def elsewhere(line: Line, shard: Shard) -> Iterator[Fed]:
    """As through Ray's object store."""
    for one in chunks(shard, replace(line, meter=Meter()), Attempt()):
        yield pickle.loads(pickle.dumps(one))


def test_part_of_a_shard_read_elsewhere_is_the_same(shard: Shard, line: Line, tmp_path: Path) -> None:
    here = tokenize_shard(shard, line)
    other = replace(line, output=line.output.model_copy(update={"url": str(tmp_path / "there")}), meter=Meter())
    there = tokenize_shard(shard, other, feed=lambda shard: elsewhere(line, shard))
    name = f"tokens/{shard.id}.parquet"
    assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()
    assert there.counts == here.counts
    assert (here.counts.rows, here.counts.rejects) == (9, 1)
    assert remote_flags(here, there) == (False, True)
    reading = other.meter.read()
    assert (reading.samples, reading.rejects, reading.bytes_read > 0) == (10, 1, True)
    assert reading.busy[Part.DECODE] > 0


def remote_flags(*reports: ShardReport) -> tuple[bool, ...]:
    return tuple(report.supply.remote for report in reports if report.supply)


def test_chunks_are_of_one_shape_and_accounts_come_last(shard: Shard, line: Line) -> None:
    *some, last = chunks(shard, replace(line, meter=Meter()), Attempt())
    assert isinstance(last, Accounts)
    assert all(isinstance(one, Chunk) and len(one.rows) == len(one.images) for one in some)
    assert sum(len(one.rows) for one in some if isinstance(one, Chunk)) == 9


def test_failure_elsewhere_is_the_failure_of_the_attempt(shard: Shard, line: Line, tmp_path: Path) -> None:
    down = Failure(Kind.INFRA, "storage", "503")
    with pytest.raises(FeedFailed) as caught:
        tokenize_shard(shard, line, feed=lambda _: iter([down]))
    assert caught.value.failure == down
    assert not list((tmp_path / "here").glob("tokens/*"))


@pytest.mark.parametrize(
    ("change", "resampled_by", "kind"),
    [({"size": 1}, None, Kind.TASK), ({}, "another library", Kind.FATAL)],
    ids=["shard that is bad", "other library"],
)
def test_decoder_tells_what_is_wrong(
    shard: Shard, tmp_path: Path, change: dict[str, int], resampled_by: str | None, kind: Kind
) -> None:
    decoder = Decoder(resolve(settings=["image.size=32"], flags={"shards": [str(tmp_path)]}, environment={}), 1)
    *_, last = decoder.feed(replace(shard, **change), resampled_by or resampler("exact"))
    assert isinstance(last, Failure)
    assert last.kind is kind
