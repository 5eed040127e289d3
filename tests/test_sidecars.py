"""Members and fields of a sidecar as typed columns."""

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import resolve
from pipeline.errors import UsageError
from pipeline.shards.manifest import freeze
from pipeline.sidecars import read_sidecars
from pipeline.storage import Storage
from pipeline.tokenize_shard import tokenize_shard
from pipeline.tokens.reader import read_footer
from pipeline.tokens.schema import ColumnsConfig
from tests.support.corpora import jpeg, write_shard
from tests.support.lines import production_line

META = {"score": 5, "deep": {"name": "caf\u00e9"}, "ok": False, "big": 1 << 63, "list": [1, "a"], "none": None}
META |= {"cut": "abc\ud83d", "halves": "\udc00a\ud83d\ude00", "huge": 10**400}
MEMBERS = {"json": json.dumps(META).encode(), "ocr.txt": b"caf\xe9", "n": b" 12\n", "x": b"1e3", "o": b'{"b": 1}'}
TOO_DEEP = b'{"a":' * 100_000  # Python refuses it by RecursionError
MEMBERS |= {"deep": TOO_DEEP, "cut": b'["a\\ud83d"]', "long": b"1" * 5000}


@pytest.mark.parametrize(
    ("source", "value", "warning"),
    [
        ("meta.score: int", 5, None),
        ("meta.score: float", 5.0, None),
        ("meta.score: string", None, "c_not_string"),
        ("meta.score: bool", None, "c_not_bool"),
        ("meta.deep.name: string", "caf\u00e9", None),
        ("meta.deep: json", '{"name":"caf\u00e9"}', None),
        ("meta.list:json", '[1,"a"]', None),
        ("meta.ok: bool", False, None),
        ("meta.ok: int", None, "c_not_int"),
        ("meta.ok: float", None, "c_not_float"),
        ("meta.big: int", None, "c_not_int"),
        ("meta.none: int", None, None),
        ("meta.absent: int", None, None),
        ("ocr.txt: string", "caf\ufffd", "c_not_utf8"),
        ("n: int", 12, None),
        ("x: float", 1000.0, None),
        ("x: int", None, "c_not_int"),
        ("o: json", '{"b":1}', None),
        ("absent: string", None, None),
        ("meta.cut: string", "abc\ufffd", "c_not_utf8"),
        ("meta.halves: string", "\ufffda\U0001f600", "c_not_utf8"),
        ("meta.cut: json", '"abc\ufffd"', "c_not_utf8"),
        ("meta.huge: float", None, "c_not_float"),
        ("meta.huge: int", None, "c_not_int"),
        ("deep: json", None, "c_not_json"),
        ("cut: json", '["a\ufffd"]', "c_not_utf8"),
        ("long: int", None, "c_not_int"),
        ("long: json", None, "c_not_json"),
    ],
)
def test_field(source: str, value: object, warning: str | None) -> None:
    warnings: Counter[str] = Counter()
    columns = ColumnsConfig(caption=None, label=None, fields={"c": source})
    sidecars = read_sidecars(MEMBERS, columns, warnings)
    assert sidecars.fields == (value,)
    assert type(sidecars.fields[0]) is type(value)
    assert warnings == ({warning: 1} if warning else {})
    assert ("c" in sidecars.filled(columns)) == (value is not None)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"view": "meta.a: int"}, "must be a new name"),
        ({"A": "meta.a: int"}, "must be a new name"),
        ({"a": "meta.a"}, "must be `meta.NAME: TYPE`"),
        ({"a": "meta.a: double"}, "one of int, float, bool, string, json"),
        ({"a": "txt: bool"}, "a member must be int, float, string or json"),
    ],
)
def test_refused_field(fields: dict[str, str], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        resolve(settings=[f"columns.fields={json.dumps(fields)}"], environment={})


def test_columns_of_a_part(tmp_path: Path, tiny_model: Path) -> None:
    samples = {f"k{i}": {"jpg": jpeg(i), "json": json.dumps({"score": i / 2}).encode()} for i in range(3)}
    samples["k1"]["json"] = b'{"score": "high"}'
    (shard,) = freeze(Storage(), [str(write_shard(tmp_path / "x.tar", samples))])
    columns = ColumnsConfig(fields={"score": "meta.score: float", "all": "json: json"})
    with production_line(tiny_model, str(tmp_path / "out"), columns=columns, recipe="llamagen-center-flip") as line:
        assert tokenize_shard(shard, line).filled == {"all", "score", "meta"}
    table = pq.read_table(tmp_path / "out" / "tokens" / f"{shard.id}.parquet")
    assert table.schema.names[-2:] == ["all", "score"]
    assert table.schema.field("score").type == pa.float64()
    assert table["score"].to_pylist() == [0.0, 0.0, None, None, 1.0, 1.0]
    assert json.loads(pq.read_metadata(tmp_path / "out" / "tokens" / f"{shard.id}.parquet").metadata[b"tokenmill"])[
        "warnings"
    ] == {"score_not_float": 1}


def test_odd_sidecars_cost_no_shard(tmp_path: Path, tiny_model: Path) -> None:
    odd = [b'{"t": "abc\\ud83d"}', TOO_DEEP, b'{"t": "b", "x": ' + b"9" * 400 + b"}", b'{"t": "c", "x": 1}']
    samples = {f"k{i}": {"jpg": jpeg(i), "json": data} for i, data in enumerate(odd)}
    (shard,) = freeze(Storage(), [str(write_shard(tmp_path / "x.tar", samples))])
    columns = ColumnsConfig(meta=None, fields={"t": "meta.t: string", "x": "meta.x: float"})
    with production_line(tiny_model, str(tmp_path / "out"), columns=columns) as line:
        assert tokenize_shard(shard, line).counts.tokenized == 4
    part = f"{tmp_path}/out/tokens/{shard.id}.parquet"
    rows = pq.read_table(part, columns=["t", "x"])
    assert rows.to_pydict() == {"t": ["abc\ufffd", None, "b", "c"], "x": [None, None, None, 1.0]}
    assert read_footer(Storage(), part).warnings == {"t_not_utf8": 1, "x_not_float": 1}


def test_fields_are_part_of_the_identity_only_if_there_are_any() -> None:
    assert "fields" not in ColumnsConfig().describe()
    assert ColumnsConfig(fields={"b": "n: int", "a": "x: int"}).describe()["fields"] == {"a": "x: int", "b": "n: int"}
