"""`rar`: one JSONL file, for bytedance/1d-tokenizer (RAR, TiTok).

Layout (`scripts/pretokenization.py`, `data/webdataset_reader.py: PretoeknizedDataSetJSONL`): a line `{"class_id": int,
"tokens": [int, ...]}` for each view of each image.
"""

import json
from pathlib import Path
from types import MappingProxyType

from pipeline.exports.format import Format, Note, Unit, make_file
from pipeline.exports.source import Source, labels_of, tokens_of


class Rar(Format):
    """Class-conditional token lists."""

    unit_rows = 100_000
    joins = MappingProxyType({"pretokenized.jsonl": "lines/pretokenized-*.jsonl"})
    advice = (
        "RAR was trained on tokens of MaskGIT's VQGAN, which is none of the families here (docs/tokenizers.md tells "
        "how to plug one in): image.recipe=llamagen-tencrop-1.1, model.value_range=0..1"
    )

    def check(self, source: Source) -> None:
        source.need_label()
        _ = source.grid

    def write(self, source: Source, unit: Unit, folder: Path) -> tuple[int, Note]:
        rows = 0
        with open(make_file(folder, f"lines/pretokenized-{unit.number:06d}.jsonl"), "w", encoding="ascii") as lines:
            for table in source.read(unit.start, unit.stop, ["key", "tokens", "label"]):
                pairs = zip(tokens_of(table).tolist(), labels_of(table).tolist(), strict=True)
                lines.writelines(json.dumps({"class_id": label, "tokens": tokens}) + "\n" for tokens, label in pairs)
                rows += table.num_rows
        return rows, {}
