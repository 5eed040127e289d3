"""`webdataset`: tars of token grids, for codes of one's own.

Layout (https://github.com/webdataset/webdataset): members `{key}.npy`, [h, w] of the dtype in the parts, `{key}.txt`
the caption, `{key}.cls` the label if there is one, `{key}.json` all columns but tokens and caption.
"""

import json
from pathlib import Path
from typing import ClassVar

import numpy.typing as npt

from pipeline.exports.format import Format, Note, Unit, key_of, make_file, npy, tar_writer, text_of
from pipeline.exports.source import Source, tokens_of


class WebDataset(Format):
    """Token grids with captions and labels.

    Attributes:
        member: extension of the tokens.
    """

    member: ClassVar[str] = "npy"
    advice = "keys are numbers; each sample's own key is in its json"

    def check(self, source: Source) -> None:
        _ = source.grid

    def dtype(self, source: Source) -> npt.DTypeLike:
        """Of the tokens."""
        return source.parts.spec.dtype.newbyteorder("<")

    def write(self, source: Source, unit: Unit, folder: Path) -> tuple[int, Note]:
        rows = 0
        with tar_writer(make_file(folder, f"{unit.number:05d}.tar")) as tar:
            for table in source.read(unit.start, unit.stop):
                grids = tokens_of(table, self.dtype(source)).reshape(-1, *source.grid)
                for grid, row in zip(grids, table.drop_columns("tokens").to_pylist(), strict=True):
                    sample = {"__key__": key_of(unit.start + rows), self.member: npy(grid), "txt": text_of(row)}
                    if row.get("label") is not None:
                        sample["cls"] = str(row["label"]).encode()
                    row.pop("caption", None)
                    tar.write(sample | {"json": json.dumps(row).encode()})
                    rows += 1
        return rows, {}
