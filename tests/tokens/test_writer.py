"""Parts on local disk: complete, checked, small, readable."""

import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.storage import Storage
from pipeline.tokens import writer
from pipeline.tokens.reader import NotAPart, read_footer, read_rows
from pipeline.tokens.schema import ColumnsConfig, Counts, PartFooter, TokenSpec, to_arrow
from pipeline.tokens.writer import OutputConfig, PartDamaged, PartWriter
from tests.tokens.test_schema import row

URL = "file:///corpus/x.tar"


def write(path: Path, tokens: np.ndarray, codes: int, *, group: int = 2000, batch: int = 32) -> PartFooter:
    count, height, width = tokens.shape
    spec = TokenSpec(codes, height, width)
    footer = PartFooter(
        "f" * 64, {"id": "x", "url": URL, "size": 1, "etag": None}, spec, Counts(count, count, count, 0)
    )
    with PartWriter(path, spec, ColumnsConfig(), URL, OutputConfig(row_group_rows=group)) as part:
        for start in range(0, count, batch):
            rows = [row(i) for i in range(start, min(start + batch, count))]
            part.add(rows, tokens[start : start + batch])
        part.finish(footer)
    return footer


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_same_bytes_however_the_rows_came(tmp_path: Path, batch: int) -> None:
    tokens = np.random.default_rng(0).integers(0, 1000, (100, 4, 4))
    write(tmp_path / "a", tokens, 1024, group=30, batch=10)
    write(tmp_path / "b", tokens, 1024, group=30, batch=batch)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    groups = pq.read_metadata(tmp_path / "a")
    assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [30, 30, 30, 10]


def test_rows_become_columns_many_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    monkeypatch.setattr(writer, "to_arrow", lambda rows, *a, **k: sizes.append(len(rows)) or to_arrow(rows, *a, **k))
    write(tmp_path / "part", np.zeros((150, 2, 2), np.int64), 16, batch=2)
    assert sizes == [64, 64, 22]


def test_wrong_tokens_of_a_few_rows_are_refused_at_the_latest_when_the_part_ends(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\[0, 16\), got values from 0 to 16"):
        write(tmp_path / "part", np.arange(17).repeat(4).reshape(17, 2, 2), 16, batch=2)


@pytest.mark.parametrize("codes", [1024, 16384, 262144])
def test_size_within_three_percent_of_the_bits(tmp_path: Path, codes: int) -> None:
    rng = np.random.default_rng(0)  # code frequencies as skewed as a trained codebook's
    tokens = np.minimum(codes - 1, (codes * rng.random((6000, 16, 16)) ** 1.2)).astype(np.int64)
    write(tmp_path / "part", tokens, codes, batch=2000)
    metadata = pq.read_metadata(tmp_path / "part")
    column = metadata.schema.names.index("element")
    size = sum(metadata.row_group(i).column(column).total_compressed_size for i in range(metadata.num_row_groups))
    assert 8 * size / tokens.size <= 1.03 * math.log2(codes)


def test_empty_part_is_a_part(tmp_path: Path) -> None:
    footer = write(tmp_path / "part", np.zeros((0, 2, 2), np.int64), 16)
    assert read_footer(Storage(), str(tmp_path / "part")) == footer
    assert read_rows(Storage(), str(tmp_path / "part")).num_rows == 0


def test_accounts_that_do_not_close_are_refused(tmp_path: Path) -> None:
    spec = TokenSpec(16, 2, 2)
    with PartWriter(tmp_path / "part", spec, ColumnsConfig(), URL, OutputConfig()) as part:
        part.add([row()], np.zeros((1, 2, 2), np.int64))
        with pytest.raises(AssertionError, match="do not close"):
            part.finish(PartFooter("f", {}, spec, Counts(2, 2, 2, 0)))


def test_disk_that_lies_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, flipped = np.zeros((50, 2, 2), np.int64), np.ones((50, 2, 2), np.int64)
    footer = write(tmp_path / "other", flipped, 16)
    read = pq.ParquetFile
    monkeypatch.setattr(pq, "ParquetFile", lambda _path: read(tmp_path / "other"))
    with pytest.raises(PartDamaged, match="read back"):
        write(tmp_path / "part", tokens, 16)
    assert footer.counts.rows == 50


@pytest.mark.parametrize("content", [b"", b"PAR1", b"<html>", b"PAR1" + bytes(100) + b"PAR1"])
def test_foreign_file_is_no_part(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(content)
    with pytest.raises(NotAPart, match="not a part of Tokenmill"):
        read_footer(Storage(), str(path))


def test_truncated_part_is_no_part(tmp_path: Path) -> None:
    write(tmp_path / "part", np.zeros((50, 2, 2), np.int64), 16)
    data = (tmp_path / "part").read_bytes()
    for cut in (1, 100, len(data) // 2, len(data) - 1):
        (tmp_path / "cut").write_bytes(data[:cut])
        with pytest.raises(NotAPart):
            read_footer(Storage(), str(tmp_path / "cut"))
