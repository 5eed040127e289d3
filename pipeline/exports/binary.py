"""`bin`: all tokens in one flat file that `numpy.memmap` opens, as karpathy/nanoGPT reads `train.bin`.

Layout: `train.bin`, little-endian uint16 (uint32 above 65,536 codes), row after row of h * w tokens; so row i begins at
i * h * w. `train_labels.bin`: int64 per row, -1 where there is none, if the run has labels. `index.json`: dtype, rows,
grid, codes.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import MappingProxyType

import pyarrow.compute as pc

from pipeline.exports.format import Format, Note, Unit, make_file
from pipeline.exports.source import Source, tokens_of
from pipeline.tokens.columns import NO_NUMBER


class Binary(Format):
    """One memmap of tokens."""

    unit_rows = 500_000
    joins = MappingProxyType({"train.bin": "pieces/tokens-*.bin", "train_labels.bin": "pieces/labels-*.bin"})
    advice = "np.memmap('train.bin', dtype, mode='r'), with the dtype in index.json; there are no separators"

    def check(self, source: Source) -> None:
        _ = source.grid

    def write(self, source: Source, unit: Unit, folder: Path) -> tuple[int, Note]:
        labelled, rows = "label" in source.parts.schema.names, 0
        dtype = source.parts.spec.dtype.newbyteorder("<")
        path = make_file(folder, f"pieces/labels-{unit.number:06d}.bin")
        with (
            open(make_file(folder, f"pieces/tokens-{unit.number:06d}.bin"), "wb") as tokens,
            open(path, "wb") if labelled else nullcontext() as labels,
        ):
            for table in source.read(unit.start, unit.stop, ["tokens", *(["label"] if labelled else [])]):
                tokens.write(tokens_of(table, dtype).tobytes())
                if labels is not None:
                    column = pc.fill_null(table.column("label").combine_chunks(), NO_NUMBER)
                    labels.write(column.to_numpy().astype("<i8").tobytes())
                rows += table.num_rows
        return rows, {}

    def finish(self, source: Source, notes: Sequence[Note]) -> Mapping[str, bytes]:  # noqa: ARG002
        height, width = source.grid
        about = {
            "dtype": source.parts.spec.dtype.name,
            "rows": source.rows,
            "tokens_per_row": height * width,
            "grid_height": height,
            "grid_width": width,
            "codebook_size": source.parts.spec.codebook_size,
            "views": source.parts.views if source.view is None else 1,
        }
        return {"index.json": json.dumps(about, indent=2).encode()}
