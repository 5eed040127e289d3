"""Rows and footers."""

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import Reject, Stage
from pipeline.tokens.schema import (
    ColumnsConfig,
    Counts,
    PartFooter,
    RejectedSample,
    Row,
    TokenSpec,
    arrow_schema,
    to_arrow,
)

SPEC = TokenSpec(codebook_size=100, grid_height=2, grid_width=3)


def row(index: int = 0, **changes: object) -> Row:
    fields = {
        "key": f"k{index}",
        "sample_index": index,
        "view": 0,
        "height": 480,
        "width": 640,
        "crop": (0.0, 80.0, 480.0, 480.0),
        "flip": False,
        "caption": "a cat",
        "label": 7,
        "meta": "{}",
    }
    return Row(**{**fields, **changes})


@pytest.mark.parametrize(("codes", "dtype"), [(1024, pa.uint16()), (65536, pa.uint16()), (65537, pa.uint32())])
def test_tokens_take_the_smallest_unsigned_type(codes: int, dtype: pa.DataType) -> None:
    schema = arrow_schema(TokenSpec(codes, 2, 3), ColumnsConfig())
    assert schema.field("tokens").type == pa.list_(dtype, 6)


def test_columns_switched_off_are_absent() -> None:
    names = arrow_schema(SPEC, ColumnsConfig(caption=None, meta=None)).names
    assert "label" in names
    assert not {"caption", "meta"} & set(names)


def test_rows_keep_values_and_order() -> None:
    tokens = np.arange(12).reshape(2, 2, 3)
    batch = to_arrow(
        [row(0), row(1, caption=None, label=None)], tokens, shard="s3://b/x.tar", spec=SPEC, columns=ColumnsConfig()
    )
    got = batch.to_pylist()
    assert [r["tokens"] for r in got] == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert [r["caption"] for r in got] == ["a cat", None]
    assert {r["shard"] for r in got} == {"s3://b/x.tar"}
    assert got[0]["crop"] == [0.0, 80.0, 480.0, 480.0]
    assert (got[0]["grid_height"], got[0]["grid_width"]) == (2, 3)


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        (np.full((1, 2, 3), 100), r"\[0, 100\), got values from 100 to 100"),
        (np.full((1, 2, 3), -1), "got values from -1"),
        (np.zeros((1, 3, 2)), r"tokens must be \(1, 2, 3\), got \(1, 3, 2\)"),
        (np.zeros((2, 2, 3)), r"tokens must be \(1, 2, 3\)"),
    ],
)
def test_wrong_tokens_are_refused(tokens: np.ndarray, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        to_arrow([row()], tokens, shard="x", spec=SPEC, columns=ColumnsConfig())


def footer(rejects: int = 0) -> PartFooter:
    bad = [RejectedSample(f"k{i}é", i, Reject(Stage.DECODE, "truncated", "cut at 3")) for i in range(rejects)]
    return PartFooter(
        fingerprint="f" * 64,
        shard={"id": "x-1", "url": "file:///x.tar", "size": 10, "etag": None},
        spec=SPEC,
        counts=Counts(samples=5 + rejects, tokenized=5, rows=5, rejects=rejects),
        rejects=tuple(bad),
        warnings={"missing_end_marker": 1},
    )


@pytest.mark.parametrize("rejects", [0, 1, 5000])
def test_footer_round_trip(rejects: int) -> None:
    written = footer(rejects)
    data = written.to_json()
    assert PartFooter.from_json(data) == PartFooter(**{f: getattr(written, f) for f in written.__slots__})
    assert data == footer(rejects).to_json(), "equal footers are equal bytes"
    assert len(data) < 100_000, "rejects are compressed"


@pytest.mark.parametrize("data", [b"", b"{}", b'{"schema": 2}', b"[]", b"\xff"])
def test_foreign_footer_is_refused(data: bytes) -> None:
    with pytest.raises((ValueError, AttributeError)):
        PartFooter.from_json(data)


def test_accounts_balance() -> None:
    assert Counts(5, 3, 30, 2).balanced()
    assert not Counts(5, 3, 30, 1).balanced()
