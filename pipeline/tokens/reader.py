"""Reading parts: the footer alone, or the rows."""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import NotAPart
from pipeline.storage import Storage
from pipeline.tokens.schema import FOOTER_KEY, PartFooter


def read_footer(storage: Storage, url: str) -> PartFooter:
    """The footer of one part; reads a few kilobytes.

    Raises:
        NotFound: there is no such object.
        NotAPart: it is no Parquet file, or has no footer of ours.
    """
    return read_metadata(storage, url)[0]


def read_metadata(storage: Storage, url: str) -> tuple[PartFooter, Any]:
    """The footer of one part, and the `pyarrow.parquet.FileMetaData` that it is written in.

    Raises:
        NotFound: there is no such object.
        NotAPart: it is no Parquet file, or has no footer of ours.
    """
    with storage.open_random(url) as file:
        try:
            metadata = pq.read_metadata(file)
            return PartFooter.from_json((metadata.metadata or {})[FOOTER_KEY]), metadata
        except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
            said = f"{type(error).__name__}: {error}"
            raise NotAPart(
                f"{url}: not a part of Tokenmill ({said}); move it away, or choose another output"
            ) from error


def read_schema(storage: Storage, url: str) -> Any:
    """The `pyarrow.Schema` of one part's rows.

    Raises:
        NotFound: there is no such object.
        NotAPart: it is no Parquet file, or has no footer of ours.
    """
    return read_metadata(storage, url)[1].schema.to_arrow_schema().remove_metadata()


def read_rows(storage: Storage, url: str, columns: list[str] | None = None) -> Any:
    """The rows of one part as a `pyarrow.Table` (all columns, or those named)."""
    with storage.open_random(url) as file:
        return pq.read_table(file, columns=columns)
