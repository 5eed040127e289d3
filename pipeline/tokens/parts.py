"""The parts of an OUTPUT as one frozen list: what a reader of rows needs to know before it reads any."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow.parquet as pq

from pipeline.errors import FingerprintMismatch, NotFound, UsageError
from pipeline.storage import Blob, Storage
from pipeline.tokens.reader import read_metadata
from pipeline.tokens.schema import TokenSpec, canonical_json
from pipeline.urls import canonical, join

THREADS = 16  # footers read at once


@dataclass(frozen=True, slots=True)
class Part:
    """One part.

    Attributes:
        url: of the Parquet file.
        group_rows: rows of each of its row groups.
        samples: tokenized samples; each has `views` rows, one after another.
        fingerprint: of what made its tokens.
        size: of the file (bytes).
    """

    url: str
    group_rows: tuple[int, ...]
    samples: int
    fingerprint: str
    size: int = 0

    @property
    def rows(self) -> int:
        return sum(self.group_rows)

    @property
    def name(self) -> str:
        """The file's name: the shard's id and `.parquet`."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Parts:
    """Parts of one fingerprint, sorted by name. Picklable: one process may find them and send them to all others.

    Attributes:
        parts: the parts.
        spec: codebook size and grid of all their tokens.
        schema: the Arrow schema of their rows.
    """

    parts: tuple[Part, ...]
    spec: TokenSpec
    schema: Any

    @cached_property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    @cached_property
    def digest(self) -> str:
        """Changes with the data: names, row groups and fingerprints. A copy in another place has the same."""
        told = [[part.name, list(part.group_rows), part.samples, part.fingerprint] for part in self.parts]
        return hashlib.sha256(canonical_json(told)).hexdigest()

    @cached_property
    def views(self) -> int | None:
        """Rows of each sample; None if samples have different numbers of them."""
        found = {part.rows / part.samples for part in self.parts if part.samples}
        return int(found.pop()) if len(found) == 1 and all(count.is_integer() for count in found) else None

    def of(self, part: Part) -> "Parts":
        """The list of one of the parts alone."""
        return Parts((part,), self.spec, self.schema)


def find_parts(
    storage: Storage, output: str, *, only: Iterable[str] | None = None, partial: bool = False, allow_none: bool = False
) -> Parts:
    """The parts that lie in OUTPUT now; parts that come later do not belong to the list.

    Args:
        storage: access to it.
        output: folder or URL of a run.
        only: names of the parts wanted (`<shard_id>` or `<shard_id>.parquet`); all if None.
        partial: take what is there of a run that has not finished.
        allow_none: a list of no rows is fine.

    Raises:
        UsageError: the run is not finished and neither `only` nor `partial` is given, a part named is not there, or
            there are no rows.
        FingerprintMismatch: the parts hold tokens made in different ways.
        NotAPart: something else lies among the parts.
    """
    output = canonical(output)
    if only is None and not partial and not storage.exists(join(output, "_SUCCESS")):
        raise UsageError(
            f"{output}: the run is not finished (no _SUCCESS), so more parts may come; finish it, or read what is "
            "there (partial=True, --partial), or name the parts"
        )
    there = {blob.url.rpartition("/")[2]: blob for blob in storage.list_folder(join(output, "tokens"), ".parquet")}
    names = sorted(there) if only is None else sorted({name.removesuffix(".parquet") + ".parquet" for name in only})
    if missing := [name for name in names if name not in there]:
        raise UsageError(f"{output}/tokens has no {missing[0]}, and {len(missing) - 1} more parts named are missing")
    if not names:
        raise UsageError(f"{output}: no parts under tokens/; is this the output of a run?")
    parts = _read_all(storage, [there[name] for name in names])
    if not parts.rows and not allow_none:
        raise UsageError(f"{output}: its {len(parts.parts)} parts hold no rows")
    return parts


@contextmanager
def open_part(storage: Storage, part: Part, **options: Any) -> Iterator[Any]:
    """The part as a `pyarrow.parquet.ParquetFile` (which takes the options).

    Raises:
        UsageError: it is no longer the part that was listed.
    """
    try:
        with storage.open_random(part.url) as file, pq.ParquetFile(file, **options) as parquet:
            metadata = parquet.metadata
            groups = tuple(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))
            if groups != part.group_rows:
                raise UsageError(f"{part.url}: was replaced since the parts were listed; list them again")
            yield parquet
    except NotFound as error:
        raise UsageError(f"{part.url}: is gone since the parts were listed; list them again") from error


def _read_all(storage: Storage, blobs: Sequence[Blob]) -> Parts:
    def read(blob: Blob) -> tuple[Part, TokenSpec, Any]:
        try:
            footer, metadata = read_metadata(storage, blob.url)
        except NotFound as error:
            raise UsageError(f"{blob.url}: was there a moment ago and is gone; list the parts again") from error
        groups = tuple(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))
        schema = metadata.schema.to_arrow_schema().remove_metadata()
        part = Part(blob.url, groups, footer.counts.tokenized, footer.fingerprint, blob.size)
        return part, footer.spec, schema

    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(read, blobs))
    first, spec, schema = found[0]
    for part, its_spec, its_schema in found:
        if part.fingerprint != first.fingerprint or its_spec != spec or not its_schema.equals(schema):
            raise FingerprintMismatch(
                f"{part.url} holds tokens made another way than {first.name} (fingerprint {part.fingerprint[:12]}, "
                f"not {first.fingerprint[:12]}); `tokenmill verify` lists all such parts: move them away"
            )
    return Parts(tuple(part for part, _, _ in found), spec, schema)
