"""`hf`: few large Parquet files with all columns and a card, as the Hugging Face Hub likes data sets.

Layout: `data/train-00000-of-000NN.parquet` of 0.5 to 1 GB (https://huggingface.co/docs/hub/datasets-data-files-configuration).
Read by `datasets.load_dataset(folder)`.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.card import dataset_card
from pipeline.errors import UsageError
from pipeline.exports.format import Format, Note, Unit, make_file
from pipeline.exports.source import Source
from pipeline.tokens.writer import parquet_options
from pipeline.urls import local_path

FILE_BYTES = 1e9  # files come out between half of it and all of it, but for small runs
FILES = "data/train-*.parquet"
GROUP_ROWS = 2000  # as in the parts: a random row then costs milliseconds


class HuggingFace(Format):
    """Compacted Parquet with a dataset card."""

    def rows_per_unit(self, source: Source) -> int:
        files = math.ceil(source.bytes_per_row * source.rows / FILE_BYTES)
        return math.ceil(source.rows / max(1, files))

    def write(self, source: Source, unit: Unit, folder: Path) -> tuple[int, Note]:
        path = make_file(folder, f"data/train-{unit.number:05d}-of-{unit.of:05d}.parquet")
        rows = memory = 0
        with pq.ParquetWriter(path, source.parts.schema, **parquet_options(source.parts.spec)) as writer:
            for table in source.read(unit.start, unit.stop, multiple=GROUP_ROWS):
                writer.write_table(table, row_group_size=GROUP_ROWS)
                rows += table.num_rows
                memory += table.nbytes
        return rows, {"num_bytes": memory, "download_size": path.stat().st_size}

    def finish(self, source: Source, notes: Sequence[Note]) -> Mapping[str, bytes]:
        sizes = {name: sum(note[name] for note in notes) for name in ("num_bytes", "download_size")}
        summary = {**source.summary, "rows": source.rows}
        card = dataset_card(source.job, summary, source.parts.schema, files=FILES, export=sizes)
        return {"README.md": card.encode()}


def upload(folder: str, repo: str) -> str:
    """Send a finished export to a data set of the Hub, in one commit that leaves no other of its files; returns where.

    Args:
        folder: a local folder.
        repo: owner and name; made, and private, if it is not there. Who may write is huggingface_hub's business.

    Raises:
        UsageError: the Hub did not take it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    path, hub = local_path(folder), HfApi()
    assert path is not None, f"not a local folder: {folder}"
    try:
        hub.create_repo(repo, repo_type="dataset", exist_ok=True, private=True)
        hub.upload_folder(
            repo_id=repo,
            folder_path=path,
            repo_type="dataset",
            ignore_patterns=["_tokenmill/**"],
            delete_patterns=[FILES],  # of an earlier upload that was cut in another number of files
        )
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError) as error:
        raise UsageError(f"the Hub did not take {repo}; the export itself is complete in {path}: {error}") from error
    return f"{hub.endpoint}/datasets/{repo} (private, if it is new)"
