"""`4m`: a tar per modality with the same keys in the same order, for apple/ml-4m.

Layout (`fourm/data/unified_datasets.py: multi_tarfile_samples`, `save_vq_tokens.py`): `tok_rgb/shard-00000.tar` and
`crop_settings/shard-00000.tar` of `{key}.npy`; tokens int16 [views, h * w], crop settings [views, 5] as top, left,
height, width in source pixels and flip; `caption/shard-00000.tar` of `{key}.txt` if the run has captions. Its
`data_path` is then `TO/[tok_rgb,crop_settings,caption]/shard-{00000..000NN}.tar`.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import UsageError
from pipeline.exports.format import Format, Note, Unit, key_of, make_file, npy, tar_writer
from pipeline.exports.source import Source, tokens_of

INT16_CODES = 1 << 15


class FourM(Format):
    """Tokens, crop settings and captions in aligned tars."""

    samples_whole = True
    unit_rows = 10_000
    advice = "name the tokens' folder (tok_rgb) in the modality's `path`; keys are the samples' numbers in the export"

    def check(self, source: Source) -> None:
        _ = source.grid, source.views
        codes = source.parts.spec.codebook_size
        if codes > INT16_CODES:
            raise UsageError(
                f"4M stores tokens as int16, which holds {INT16_CODES:,} codes; this run has {codes:,} and would wrap"
            )

    def write(self, source: Source, unit: Unit, folder: Path) -> tuple[int, Note]:
        captions = "caption" in source.parts.schema.names
        modalities = ["tok_rgb", "crop_settings", *(["caption"] if captions else [])]
        columns = ["tokens", "crop", "flip", *(["caption"] if captions else [])]
        views, rows = source.views, 0
        with ExitStack() as stack:
            tars = {
                name: stack.enter_context(tar_writer(make_file(folder, f"{name}/shard-{unit.number:05d}.tar")))
                for name in modalities
            }
            for table in source.read(unit.start, unit.stop, columns, multiple=views):
                tokens, crops = tokens_of(table, np.int16), _crop_settings(table)
                for place in range(0, len(tokens), views):
                    key, here = key_of((unit.start + rows + place) // views), slice(place, place + views)
                    tars["tok_rgb"].write({"__key__": key, "npy": npy(tokens[here])})
                    tars["crop_settings"].write({"__key__": key, "npy": npy(crops[here])})
                    if captions:
                        text = table.column("caption")[place].as_py() or ""
                        tars["caption"].write({"__key__": key, "txt": text.encode()})
                rows += len(tokens)
        return rows, {}


def _crop_settings(table: pa.Table) -> npt.NDArray[Any]:
    """[n, 5]: top, left, height, width, flip; int64 if all of them are whole pixels, else float32."""
    crop = table.column("crop").combine_chunks().flatten().to_numpy().reshape(-1, 4)
    flip = np.asarray(table.column("flip"), np.float32)[:, None]
    settings = np.concatenate([crop, flip], axis=1)
    return settings.astype(np.int64) if np.array_equal(settings, settings.round()) else settings
