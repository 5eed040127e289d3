"""`dalle-mini`: Parquet of captions and encodings, for borisdayma/dalle-mini.

Layout (`src/dalle_mini/data.py`): columns `caption`, string, and `encoding`, list of int32; files in any number, given
to it by `train_file` with braces.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.exports.format import Format, Note, Unit, make_file
from pipeline.exports.source import Source, tokens_of

SCHEMA = pa.schema([("caption", pa.string()), ("encoding", pa.list_(pa.int32()))])


class DalleMini(Format):
    """Captions and encodings."""

    unit_rows = 100_000
    advice = "rows without a caption have an empty one"

    def check(self, source: Source) -> None:
        source.need("caption")
        _ = source.grid

    def write(self, source: Source, unit: Unit, folder: Path) -> tuple[int, Note]:
        path, rows = make_file(folder, f"data/train-{unit.number:05d}.parquet"), 0
        with pq.ParquetWriter(path, SCHEMA, compression="zstd", use_dictionary=["caption"]) as writer:
            for table in source.read(unit.start, unit.stop, ["tokens", "caption"]):
                tokens = tokens_of(table, "int32")
                ends = pa.array(range(0, tokens.size + 1, tokens.shape[1]), pa.int32())
                encoding = pa.ListArray.from_arrays(ends, pa.array(tokens.reshape(-1)))
                captions = pc.fill_null(table.column("caption").combine_chunks(), "")
                writer.write_table(pa.table([captions, encoding], schema=SCHEMA))
                rows += table.num_rows
        return rows, {}
