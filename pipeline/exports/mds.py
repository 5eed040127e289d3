"""`mds`: shards of MosaicML Streaming, version 2 of its format.

Layout (mosaicml/streaming, `streaming/base/format/mds/writer.py`): `shard.00000.mds` is the number of samples, their
offsets (n + 1), all uint32, the columns as JSON, and the samples. A sample is the sizes of its columns of variable size
(uint32), then its columns, in the order of their names. `index.json` tells of all shards. Read by
`streaming.StreamingDataset(local=folder)`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UsageError
from pipeline.exports.format import Format, Note, Unit, make_file
from pipeline.exports.source import Source, tokens_of
from pipeline.tokens.columns import NO_NUMBER

SHARD_BYTES = 1 << 26  # the default of MDSWriter
MOST_BYTES = 1 << 32  # of a shard: its offsets are uint32
_NAMES = ("caption", "key", "label", "tokens", "view")  # sorted, as the format wants them


class Mds(Format):
    """Shards for StreamingDataset."""

    advice = "label is -1 where a sample has none, caption is empty"

    def check(self, source: Source) -> None:
        _ = source.grid

    def rows_per_unit(self, source: Source) -> int:
        row = source.parts.spec.tokens_per_view * source.parts.spec.dtype.itemsize + 256
        return max(1, SHARD_BYTES // row)

    def write(self, source: Source, unit: Unit, folder: Path) -> tuple[int, Note]:
        columns = _columns(source)
        samples: list[bytes] = []
        for table in source.read(unit.start, unit.stop, list(columns)):
            tokens = tokens_of(table, source.parts.spec.dtype.newbyteorder("<"))
            rows = table.drop_columns("tokens").to_pylist()
            samples += [
                _sample({**row, "tokens": grid.tobytes()}, columns) for row, grid in zip(rows, tokens, strict=True)
            ]
        about = _about(columns)
        head = json.dumps(about, sort_keys=True).encode()
        start = 4 + 4 * (len(samples) + 1) + len(head)
        offsets = np.cumsum([start, *map(len, samples)])
        if offsets[-1] >= MOST_BYTES:
            raise UsageError(
                f"a shard of MDS must be smaller than {MOST_BYTES:,} bytes, as its offsets are uint32, got "
                f"{offsets[-1]:,} for {len(samples):,} rows; give fewer --rows-per-file"
            )
        data = b"".join([np.uint32(len(samples)).tobytes(), offsets.astype("<u4").tobytes(), head, *samples])
        name = f"shard.{unit.number:05d}.mds"
        make_file(folder, name).write_bytes(data)
        return len(samples), {"basename": name, "bytes": len(data), "samples": len(samples)}

    def finish(self, source: Source, notes: Sequence[Note]) -> Mapping[str, bytes]:
        about = _about(_columns(source))
        shards = [
            {
                **about,
                "raw_data": {"basename": note["basename"], "bytes": note["bytes"], "hashes": {}},
                "samples": note["samples"],
                "zip_data": None,
            }
            for note in notes
        ]
        return {"index.json": json.dumps({"version": 2, "shards": shards}, sort_keys=True).encode()}


def _columns(source: Source) -> dict[str, tuple[str, int | None]]:
    """Name -> encoding and size in bytes (None: it varies)."""
    spec = source.parts.spec
    tokens = f"ndarray:{spec.dtype.name}:{spec.tokens_per_view}", spec.dtype.itemsize * spec.tokens_per_view
    known = {"caption": ("str", None), "key": ("str", None), "label": ("int", 8), "tokens": tokens, "view": ("int", 8)}
    return {name: known[name] for name in _NAMES if name in source.parts.schema.names}


def _about(columns: Mapping[str, tuple[str, int | None]]) -> dict[str, Any]:
    return {
        "column_encodings": [encoding for encoding, _ in columns.values()],
        "column_names": list(columns),
        "column_sizes": [size for _, size in columns.values()],
        "compression": None,
        "format": "mds",
        "hashes": [],
        "size_limit": None,
        "version": 2,
    }


def _sample(row: Mapping[str, Any], columns: Mapping[str, tuple[str, int | None]]) -> bytes:
    values = [_encode(row[name], encoding) for name, (encoding, _) in columns.items()]
    varying = [len(value) for value, (_, size) in zip(values, columns.values(), strict=True) if size is None]
    return np.array(varying, "<u4").tobytes() + b"".join(values)


def _encode(value: Any, encoding: str) -> bytes:
    if encoding == "str":
        return (value or "").encode()
    if encoding == "int":
        return np.int64(NO_NUMBER if value is None else value).tobytes()
    return bytes(value)
