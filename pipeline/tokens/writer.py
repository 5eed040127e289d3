"""Rows to one complete, checked Parquet file on local disk. Publishing it is another room's work (`commit`)."""

import zlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from pipeline.tokens.schema import FOOTER_KEY, ColumnsConfig, Grids, PartFooter, Row, TokenSpec, arrow_schema, to_arrow

# Above so many codes a dictionary page per row group costs more than it saves (measured: 1,024 codes 10.05 bits per
# token by dictionary; 16,384 codes 14.07 by byte-stream-split against 14.63).
MAX_DICTIONARY_CODES = 4096
ZSTD_LEVEL = 1  # higher levels gained under 1 percent on tokens
# Rows that become columns together. The columns of two rows at a time, kept until their row group is full, are small
# blocks between the large ones that the model takes and gives back: those could not grow together again (measured on a
# CPU at 256 px: a heap of 930 MB with 220 in use, now of 340).
TOGETHER_ROWS = 64


class OutputConfig(BaseModel):
    """How parts are written and committed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field("", description="folder or URL that receives the dataset; made if it is not there")
    row_group_rows: int = Field(
        2000, gt=0, description="rows per Parquet row group; a random read decodes one group (rows)"
    )
    allow_overwrite_commit: bool = Field(
        False, description="accept a store without create-if-absent: concurrent attempts may then replace a part"
    )


class PartDamaged(Exception):
    """The file read back from local disk is not what was written (bad disk or memory)."""


class PartWriter:
    """Writes one part. Nothing is a part until `finish` returned.

    Example:
        with PartWriter(path, spec, columns, shard_url, config) as writer:
            writer.add(rows, tokens)          # tokens: [N, h, w]
            writer.finish(footer)
    """

    def __init__(self, path: Path, spec: TokenSpec, columns: ColumnsConfig, shard: str, config: OutputConfig) -> None:
        self._path, self._spec, self._columns, self._shard = path, spec, columns, shard
        self._group_rows = config.row_group_rows
        self._fresh: list[Row] = []
        self._fresh_grids: list[npt.NDArray[Any]] = []
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = 0
        self._checksum = 0
        self.rows = 0
        self._writer = pq.ParquetWriter(path, arrow_schema(spec, columns), **parquet_options(spec))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._writer.close()

    def add(self, rows: Sequence[Row], tokens: Grids) -> None:
        """Append N rows with their tokens: [N, h, w], or N grids [h, w] where they vary; whole row groups go to disk.

        Raises:
            ValueError: wrong shape or an index outside the codebook, of these rows or of those before.
        """
        self._fresh += rows
        self._fresh_grids += [*tokens]
        self.rows += len(rows)
        if len(self._fresh) >= TOGETHER_ROWS:
            self._put_together()

    def finish(self, footer: PartFooter) -> None:
        """Write the rest and the footer, close the file, read it back and compare.

        Raises:
            PartDamaged: the disk holds something else than was written.
        """
        if footer.counts.rows != self.rows or not footer.counts.balanced():
            raise AssertionError(f"the accounts do not close: {footer.counts} with {self.rows} rows written")
        self._put_together()
        if self._waiting_rows:
            self._flush(self._waiting_rows)
        self._writer.add_key_value_metadata({FOOTER_KEY: footer.to_json()})
        self._writer.close()
        self._check(footer)

    def _put_together(self) -> None:
        """Make columns of the rows that came last."""
        if not self._fresh:
            return
        rows, grids = self._fresh, self._fresh_grids
        self._fresh, self._fresh_grids = [], []
        batch = to_arrow(rows, grids, shard=self._shard, spec=self._spec, columns=self._columns)
        self._checksum = _checksum(batch.column("tokens"), self._checksum)
        self._waiting.append(batch)
        self._waiting_rows += len(rows)
        while self._waiting_rows >= self._group_rows:
            self._flush(self._group_rows)

    def _flush(self, rows: int) -> None:
        table = pa.Table.from_batches(self._waiting)
        self._writer.write_table(table.slice(0, rows), row_group_size=rows)
        rest = table.slice(rows)
        self._waiting, self._waiting_rows = rest.to_batches(), rest.num_rows

    def _check(self, footer: PartFooter) -> None:
        with pq.ParquetFile(self._path) as file:
            checksum = 0
            for batch in file.iter_batches(batch_size=self._group_rows, columns=["tokens"]):
                checksum = _checksum(batch.column("tokens"), checksum)
            stored = (file.metadata.metadata or {}).get(FOOTER_KEY)
            if file.metadata.num_rows != self.rows or checksum != self._checksum or stored != footer.to_json():
                raise PartDamaged(f"{self._path}: read back {file.metadata.num_rows} rows, wrote {self.rows}")


def _checksum(tokens: pa.Array, start: int) -> int:
    return zlib.crc32(memoryview(tokens.flatten().to_numpy(zero_copy_only=True)), start)


def parquet_options(spec: TokenSpec) -> dict[str, Any]:
    path, plain = (
        "tokens.list.element",
        ["key", "shard", "view", "grid_height", "grid_width", "height", "width", "flip"],
    )
    text = ["caption", "label", "meta"]
    by_dictionary = spec.codebook_size <= MAX_DICTIONARY_CODES
    return {
        "compression": "zstd",
        "write_page_checksum": True,
        "compression_level": ZSTD_LEVEL,
        "use_dictionary": [*plain, *text, path] if by_dictionary else [*plain, *text],
        "column_encoding": None if by_dictionary else {path: "BYTE_STREAM_SPLIT"},
        "dictionary_pagesize_limit": 8 << 20,
        "write_statistics": ["key", "shard", "sample_index", "label"],  # on tokens they are useless
        "version": "2.6",
    }
