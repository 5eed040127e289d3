"""`maskgit`: WebDataset with `vq_feat.npy`, for valeoai/Halton-MaskGIT (and Maskgit-pytorch).

Layout (`Dataset/dataloader.py`, data `webdata`): members `{key}.vq_feat.npy`, int64 [h, w], and `{key}.txt`.
"""

import json
from pathlib import Path

from pipeline.exports.format import Format, Note, Unit, key_of, make_file, npy, tar_writer
from pipeline.exports.source import Source, tokens_of


class MaskGit(Format):
    """Token grids with captions."""

    advice = (
        "Halton-MaskGIT globs sa_feat/*.tar, cc12m_feat/*.tar and the like: export into one of these folders; its text "
        "model also wants {key}.txt_feat.npy"
    )

    def check(self, source: Source) -> None:
        _ = source.grid

    def write(self, source: Source, unit: Unit, folder: Path) -> tuple[int, Note]:
        names = source.parts.schema.names
        columns = ["key", "shard", "view", "tokens", *(name for name in ("caption", "label") if name in names)]
        rows = 0
        with tar_writer(make_file(folder, f"{unit.number:05d}.tar")) as tar:
            for table in source.read(unit.start, unit.stop, columns):
                grids = tokens_of(table).reshape(-1, *source.grid)
                for grid, row in zip(grids, table.drop_columns("tokens").to_pylist(), strict=True):
                    sample = {"__key__": key_of(unit.start + rows), "vq_feat.npy": npy(grid)}
                    sample["txt"] = (row.pop("caption", None) or "").encode()
                    if row.get("label") is not None:
                        sample["cls"] = str(row["label"]).encode()
                    tar.write(sample | {"json": json.dumps(row).encode()})
                    rows += 1
        return rows, {}
