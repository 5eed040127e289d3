"""`4m`: a tar per modality with the same keys in the same order, for apple/ml-4m.

Layout (`fourm/data/unified_datasets.py: multi_tarfile_samples`, `save_vq_tokens.py`): `tok_rgb/shard-00000.tar` and
`crop_settings/shard-00000.tar` of `{key}.npy`; tokens int16 [views, h * w], crop settings [views, 5] as top, left,
height, width in source pixels and flip; `caption/shard-00000.tar` of `{key}.txt` if the run has captions. Its
`data_path` is then `TO/[tok_rgb,crop_settings,caption]/shard-{00000..000NN}.tar`.

4M walks the tars of one number side by side and compares keys: where they differ it drops the rest of these tars. So
keys are the samples' own, and each tar is one shard of the corpus, so that modalities from other runs and tools meet.
A key may stay as it is: it has no dot but in its folders, and webdataset cuts names as our tar walk does.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import UsageError
from pipeline.exports.format import Format, Note, Unit, make_file, npy, tar_writer, text_of
from pipeline.exports.source import Source, tokens_of

INT16_CODES = 1 << 15


class FourM(Format):
    """Tokens, crop settings and captions in aligned tars."""

    samples_whole = True
    unit_per_part = True
    advice = "name the tokens' folder (tok_rgb) in the modality's `path`; each tar is one shard of the corpus"

    def check(self, source: Source) -> None:
        _ = source.grid, source.views
        codes = source.parts.spec.codebook_size
        if codes > INT16_CODES:
            raise UsageError(
                f"4M stores tokens as int16, which holds {INT16_CODES:,} codes; this run has {codes:,} and would wrap"
            )

    def write(self, source: Source, unit: Unit, folder: Path) -> tuple[int, Note]:
        captions = ["caption"] if "caption" in source.parts.schema.names else []
        views, rows, keys = source.views, 0, set[str]()
        with ExitStack() as stack:
            tars = {
                name: stack.enter_context(tar_writer(make_file(folder, f"{name}/shard-{unit.number:05d}.tar")))
                for name in ["tok_rgb", "crop_settings", *captions]
            }
            columns = ["key", "shard", "tokens", "crop", "flip", *captions]
            for table in source.read(unit.start, unit.stop, columns, multiple=views):
                tokens, crops = tokens_of(table, np.int16), _crop_settings(table, source)
                about = table.select(["key", "shard", *captions]).to_pylist()
                for place in range(0, len(tokens), views):
                    row, here = about[place], slice(place, place + views)
                    key = _unused(row, keys)
                    tars["tok_rgb"].write({"__key__": key, "npy": npy(tokens[here])})
                    tars["crop_settings"].write({"__key__": key, "npy": npy(crops[here])})
                    if captions:
                        tars["caption"].write({"__key__": key, "txt": text_of(row)})
                rows += len(tokens)
        return rows, {}


def _unused(row: Mapping[str, Any], keys: set[str]) -> str:
    """The key of a row, which is added to those of its tar."""
    key = str(row["key"])
    if key in keys:
        raise UsageError(
            f"key {key!r} of {row['shard']} comes a second time in one tar, where 4M could not tell the samples apart; "
            "give no --rows-per-file, and each shard gets a tar of its own"
        )
    keys.add(key)
    return key


def _crop_settings(table: pa.Table, source: Source) -> npt.NDArray[Any]:
    """[n, 5]: top, left, height, width, flip; int64 from 4M's own recipe, which cuts whole pixels, else float32."""
    crop = table.column("crop").combine_chunks().flatten().to_numpy().reshape(-1, 4)
    flip = np.asarray(table.column("flip"), np.float32)[:, None]
    whole = source.job["identity"]["image"]["recipe"] == "4m"
    return np.concatenate([crop, flip], axis=1).astype(np.int64 if whole else np.float32)
