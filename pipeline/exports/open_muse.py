"""`open-muse`: WebDataset with pickled tensors, for huggingface/open-muse with `is_pre_encoded`.

Layout (`training/data.py`, `scripts/pre_encode.py`): members `{key}.{model}.pth`, an int64 tensor [h * w], where the
model is `vae_checkpoint` in lower case with `/` as `.`; `{key}.txt` and `{key}.json` (original_width, original_height).
"""

import io
import json
from pathlib import Path

from pipeline.exports.format import Format, Note, Unit, key_of, make_file, tar_writer, text_of
from pipeline.exports.source import Source, tokens_of


class OpenMuse(Format):
    """Token tensors named after their model."""

    advice = (
        "open-muse skips samples without text features: add {key}.{text encoder}.pth, [77, D], to each tar. Its "
        "vae_checkpoint must be the name that the members have here (--name)"
    )

    def check(self, source: Source) -> None:
        _ = source.grid

    def write(self, source: Source, unit: Unit, folder: Path) -> tuple[int, Note]:
        import torch  # seconds, which other formats do without

        member = f"{_extension(self.name or source.job['config']['model']['path'])}.pth"
        columns = ["key", "shard", "view", "tokens", "height", "width"]
        columns += [name for name in ("caption",) if name in source.parts.schema.names]
        rows = 0
        with tar_writer(make_file(folder, f"{unit.number:05d}.tar")) as tar:
            for table in source.read(unit.start, unit.stop, columns):
                about = table.drop_columns("tokens").to_pylist()
                for tokens, row in zip(torch.from_numpy(tokens_of(table)), about, strict=True):
                    buffer = io.BytesIO()
                    torch.save(tokens.clone(), buffer)  # else all of the table's memory is saved with it
                    json_row = {name: row[name] for name in ("key", "shard", "view")}
                    json_row |= {"original_width": row["width"], "original_height": row["height"]}
                    sample = {"__key__": key_of(unit.start + rows), member: buffer.getvalue()}
                    sample |= {"txt": text_of(row), "json": json.dumps(json_row).encode()}
                    tar.write(sample)
                    rows += 1
        return rows, {}


def _extension(model: str) -> str:
    """A hub id as open-muse spells it in names of members; of a path or URL its last folder."""
    hub_id = model.count("/") == 1 and not model.startswith(("/", "."))
    return (model if hub_id else model.rstrip("/").rpartition("/")[2]).lower().replace("/", ".")
