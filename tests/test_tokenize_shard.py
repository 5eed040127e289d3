"""One shard from URL to published part, without Ray."""

import gc
import threading
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pipeline.commit import Outcome
from pipeline.engine import Engine
from pipeline.errors import FingerprintMismatch, ShardError, ShardFault, StorageError
from pipeline.feed import Attempt, views
from pipeline.images import ImageConfig, View, find_image, prepare
from pipeline.model import VQModel
from pipeline.shards.manifest import Shard, freeze
from pipeline.storage import Storage
from pipeline.tokenize_shard import tokenize_shard
from pipeline.tokens.reader import read_footer
from pipeline.tokens.schema import Row
from tests.support.corpora import sample, write_corpus, write_shard
from tests.support.lines import production_line


def shard_of(path: Path) -> Shard:
    return freeze(Storage(), [str(path)])[0]


def part_of(output: Path, shard: Shard) -> Path:
    return output / "tokens" / f"{shard.id}.parquet"


def test_rows_are_the_samples_in_order(tmp_path: Path, corpus: Path, tiny_model: Path) -> None:
    shard = shard_of(corpus / "00001.tar")
    with production_line(tiny_model, str(tmp_path)) as line:
        report = tokenize_shard(shard, line)
    assert (report.counts.samples, report.counts.rows, report.counts.rejects) == (10, 10, 0)
    assert report.filled == {"caption", "label", "meta"}
    rows = pq.read_table(part_of(tmp_path, shard)).to_pylist()
    model = VQModel.from_pretrained(tiny_model)
    for index, row in enumerate(rows):
        members = sample(1, index)
        prepared = prepare(find_image(members), ImageConfig(size=32))
        with torch.inference_mode():
            expected = model.encode_indices(torch.from_numpy(prepared.views[0].pixels[None])).numpy()
        assert (row["key"], row["sample_index"]) == (f"001{index:04d}", index)
        assert (row["caption"], row["label"]) == (f"caption {1000 + index}", (1000 + index) % 7)
        assert (row["height"], row["width"]) == (prepared.height, prepared.width)
        assert np.mean(np.array(row["tokens"]).reshape(8, 8) == expected[0]) > 0.98


def test_bad_samples_become_rejects_and_the_rest_rows(tmp_path: Path, tiny_model: Path) -> None:
    samples = {f"k{i}": sample(0, i) for i in range(9)}
    samples["k1"]["jpg"] = samples["k1"]["jpg"][:-30]
    samples["k4"]["jpg"] = b""
    samples["k5"]["jpg"] = b"<html>not found</html>"
    del samples["k8"]["jpg"]
    samples["k3"]["cls"] = b"100000000000000000000"
    samples["k7"]["cls"], samples["k6"]["txt"] = b"dog", b"caf\xe9"
    shard = shard_of(write_shard(tmp_path / "x.tar", samples))
    with production_line(tiny_model, str(tmp_path / "out")) as line:
        report = tokenize_shard(shard, line)
    footer = read_footer(Storage(), str(part_of(tmp_path / "out", shard)))
    assert [(r.key, r.sample_index, r.reject.stage, r.reject.reason) for r in footer.rejects] == [
        ("k1", 1, "decode", "truncated"),
        ("k4", 4, "read", "empty"),
        ("k5", 5, "decode", "not_image"),
        ("k8", 8, "read", "no_image"),
    ]
    assert footer.counts == report.counts
    assert footer.counts.balanced()
    assert footer.warnings == {"label_not_int64": 2, "caption_not_utf8": 1}
    table = pq.read_table(part_of(tmp_path / "out", shard))
    assert table["sample_index"].to_pylist() == [0, 2, 3, 6, 7]
    assert table["label"].to_pylist()[-1] is None


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_parts_are_byte_identical_for_every_batch_size(
    tmp_path: Path, corpus: Path, tiny_model: Path, batch_size: int
) -> None:
    shard = shard_of(corpus / "00002.tar")
    for name, size in (("a", 4), ("b", batch_size)):
        with production_line(tiny_model, str(tmp_path / name), batch_size=size) as line:
            tokenize_shard(shard, line)
    assert part_of(tmp_path / "a", shard).read_bytes() == part_of(tmp_path / "b", shard).read_bytes()


def test_stream_is_closed_when_the_device_fails(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once and by this thread: an error that a future holds keeps the frames that hold the future."""
    closed: list[int] = []

    def watched(*arguments: object) -> Iterator[tuple[Row, View]]:
        try:
            yield from views(*arguments)
        finally:
            closed.append(threading.get_ident())

    def fails(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("pipeline.tokenize_shard.views", watched)
    monkeypatch.setattr(Engine, "submit", lambda self, _images: self._lanes.submit(fails))
    write_corpus(tmp_path / "in", shards=1, samples=40)  # more than is encoded ahead
    shard = shard_of(tmp_path / "in")
    gc.disable()
    try:
        with production_line(tiny_model, str(tmp_path / "out")) as line:
            with suppress(torch.OutOfMemoryError):
                tokenize_shard(shard, line)
            assert closed == [threading.get_ident()]
    finally:
        gc.enable()


def test_second_attempt_loses_and_changes_nothing(tmp_path: Path, corpus: Path, tiny_model: Path) -> None:
    shard = shard_of(corpus / "00000.tar")
    with production_line(tiny_model, str(tmp_path)) as line:
        assert tokenize_shard(shard, line).outcome is Outcome.DONE
        before = part_of(tmp_path, shard).stat()
        assert tokenize_shard(shard, line).outcome is Outcome.LOST
    assert part_of(tmp_path, shard).stat().st_mtime_ns == before.st_mtime_ns
    assert [p.name for p in (tmp_path / "tokens").iterdir()] == [f"{shard.id}.parquet"]
    with production_line(tiny_model, str(tmp_path), fingerprint="e" * 64) as line, pytest.raises(FingerprintMismatch):
        tokenize_shard(shard, line)


def test_each_request_of_a_commit_is_a_sign_of_life(tmp_path: Path, corpus: Path, tiny_model: Path) -> None:
    attempt, moved = Attempt(), []

    class Down(Storage):
        def create(self, url: str, source: Path) -> None:
            moved.append(attempt.moved)
            raise StorageError(f"{url}: no answer to {source}")

        def open_random(self, url: str):
            moved.append(attempt.moved)
            raise StorageError(f"{url}: no answer")

    with production_line(tiny_model, str(tmp_path), storage=Down()) as line:
        shard = shard_of(corpus / "00000.tar")
        with pytest.raises(StorageError, match="no answer"):
            tokenize_shard(shard, line, attempt)
        written = attempt.moved
    assert len(moved) == 2
    assert moved[0] < moved[1] <= written
    assert not list(tmp_path.glob("tokens/*"))


@pytest.mark.system
@pytest.mark.usefixtures("s3")
@pytest.mark.parametrize("replace", [False, True])
def test_attempt_moves_while_the_store_takes_its_files(corpus: Path, tiny_model: Path, *, replace: bool) -> None:
    attempt, moved = Attempt(), dict[str, int]()

    class Looking(Storage):
        def create(self, url: str, source: Path) -> None:
            attempt.stop.set()  # which is too late: a file that is on its way gets there
            before = attempt.moved
            super().create(url, source)
            moved[url] = attempt.moved - before

        def put(self, url: str, source: Path) -> None:
            before = attempt.moved
            super().put(url, source)
            moved[url] = attempt.moved - before

    output = f"s3://tests/{uuid.uuid4().hex}"
    with production_line(tiny_model, output, storage=Looking()) as line:
        shard = shard_of(corpus / "00000.tar")
        assert tokenize_shard(shard, line, attempt, replace=replace).outcome is Outcome.DONE
    assert moved.keys() == {f"{output}/{folder}/{shard.id}.parquet" for folder in ("qa", "tokens")}
    assert all(moved.values())


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda data: data[:-3000], ShardFault.TRUNCATED),
        (lambda _: b"<html>" * 500, ShardFault.NOT_A_TAR),
        (lambda _: b"", ShardFault.EMPTY),
        (lambda data: data + b"x" * 512, ShardFault.TRAILING_DATA),
    ],
)
def test_bad_shard_leaves_nothing(tmp_path: Path, corpus: Path, tiny_model: Path, damage, fault: ShardFault) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(damage((corpus / "00000.tar").read_bytes().rstrip(b"\0") + bytes(1024)))
    with production_line(tiny_model, str(tmp_path / "out")) as line, pytest.raises(ShardError) as error:
        tokenize_shard(shard_of(path), line)
    assert error.value.reason is fault
    assert not (tmp_path / "out").exists()


def test_column_without_any_value(tmp_path: Path, tiny_model: Path) -> None:
    samples = {f"k{i}": sample(0, i) | {"cls": b"dog"} for i in range(3)}
    del samples["k0"]["txt"], samples["k1"]["txt"], samples["k2"]["txt"]
    with production_line(tiny_model, str(tmp_path / "out")) as line:
        assert tokenize_shard(shard_of(write_shard(tmp_path / "x.tar", samples)), line).filled == {"meta"}


def test_shard_that_changed_since_it_was_frozen(tmp_path: Path, tiny_model: Path) -> None:
    shard = shard_of(write_shard(tmp_path / "x.tar", {"a": sample(0, 0)}))
    write_shard(tmp_path / "x.tar", {"a": sample(0, 1), "b": sample(0, 2)})
    with production_line(tiny_model, str(tmp_path / "out")) as line, pytest.raises(ShardError) as error:
        tokenize_shard(shard, line)
    assert error.value.reason is ShardFault.CHANGED


def test_image_sizes_of_every_shape_fit_the_model(tmp_path: Path, tiny_model: Path) -> None:
    samples = {}
    for width, height in [(1, 1), (1, 300), (300, 1), (31, 33), (1000, 40)]:
        path = tmp_path / "i.png"
        Image.effect_noise((width, height), 60).convert("RGB").save(path)
        samples[f"{width}x{height}"] = {"png": path.read_bytes()}
    shard = shard_of(write_shard(tmp_path / "x.tar", samples))
    with production_line(tiny_model, str(tmp_path / "out")) as line:
        counts = tokenize_shard(shard, line).counts
    assert (counts.samples, counts.rows) == (5, 5)
