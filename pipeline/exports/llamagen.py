"""`llamagen` and `llamagen-t2i`: one `.npy` per image, for FoundationVision/LlamaGen.

c2i (`dataset/imagenet.py`, `autoregressive/train/extract_codes_c2i.py`): `imagenet{S}_codes/{i}.npy`, int64 [1, views,
h * w], and `imagenet{S}_labels/{i}.npy`, int64 [1], for the image size S and i from 0 without gaps.

t2i (`autoregressive/train/extract_codes_t2i.py`): `{name}/{line}.npy`, int64 [1, h * w], for line `line` of
`{name}.jsonl`, which names the image. The loader for these codes is empty there (`Text2ImgDatasetCode`); this is what
the extraction writes.
"""

import json
from pathlib import Path

import numpy as np

from pipeline.errors import UsageError
from pipeline.exports.format import Format, Note, Unit, make_file
from pipeline.exports.source import Source, labels_of, tokens_of

LINES = 10_000  # of a list of images


class LlamaGen(Format):
    """Class-conditional: codes and labels."""

    samples_whole = True
    unit_rows = 20_000
    advice = (
        "LlamaGen reads exactly 1,281,167 images (dataset/imagenet.py: change the number there), looks at all views "
        "only if the path has 'flip' in it, and mixes in a second export at ten_crop_105/ beside ten_crop/"
    )

    def check(self, source: Source) -> None:
        source.need_label()
        _ = source.grid, source.views

    def write(self, source: Source, unit: Unit, folder: Path) -> tuple[int, Note]:
        size, views, rows = source.job["identity"]["image"]["size"], source.views, 0
        for table in source.read(unit.start, unit.stop, ["key", "tokens", "label"], multiple=views):
            tokens, labels = tokens_of(table), labels_of(table)
            for place in range(0, len(tokens), views):
                number = (unit.start + rows + place) // views
                codes = tokens[None, place : place + views]
                np.save(make_file(folder, f"imagenet{size}_codes/{number}.npy"), codes)
                np.save(make_file(folder, f"imagenet{size}_labels/{number}.npy"), labels[place : place + 1])
            rows += len(tokens)
        return rows, {}


class LlamaGenText(Format):
    """Text-conditional: codes, and the lists of images they belong to."""

    unit_rows = LINES
    advice = (
        "LlamaGen trains text-to-image from images and T5 features; its loader of codes is yet to be written there. "
        "Line k of NAME.jsonl belongs to NAME/k.npy"
    )

    def check(self, source: Source) -> None:
        _ = source.grid
        if source.views != 1:
            raise UsageError(f"this format holds one view of each image, the run has {source.views}; give --view 0")

    def write(self, source: Source, unit: Unit, folder: Path) -> tuple[int, Note]:
        name, rows = f"images-{unit.number:05d}", 0
        columns = [name for name in ("key", "shard", "tokens", "caption") if name in source.parts.schema.names]
        with open(make_file(folder, f"{name}.jsonl"), "w", encoding="utf-8") as lines:
            for table in source.read(unit.start, unit.stop, columns):
                about = table.drop_columns("tokens").to_pylist()
                for codes, row in zip(tokens_of(table), about, strict=True):
                    np.save(make_file(folder, f"{name}/{rows}.npy"), codes[None])
                    line = {"image_path": row["key"], "text": row.get("caption"), "shard": row["shard"]}
                    lines.write(json.dumps(line, ensure_ascii=False) + "\n")
                    rows += 1
        return rows, {}
