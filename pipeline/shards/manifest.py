"""The frozen list of input shards: from what a user writes to URL, size and ETag of every object.

A SPEC is a URL or path, with numeric braces `{00000..00999}` or alternatives `{a,b}`, a glob, a folder (its *.tar,
.tgz, .tar.gz and .tar.zst), or `@list.txt` with one SPEC per line. Relative paths, in a list too, start at the current
folder.
"""

import hashlib
import io
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import NotFound, ShardError, ShardFault, UsageError
from pipeline.storage import Blob, Storage
from pipeline.urls import canonical, redact, scheme_of

SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.zst")
MAX_SHARDS = 2_000_000  # a brace typo must not fill the memory
STAT_THREADS = 32  # requests in flight while names are looked up
STAT_BATCH = 10_000  # names handed to the threads at a time
LISTED_NAMES = 500  # so many names of one folder are looked up by listing it: S3 tells 1,000 names in one answer
SCHEMA = pa.schema(
    [("shard_id", pa.string()), ("url", pa.string()), ("size", pa.int64()), ("etag", pa.string())],
)


@dataclass(frozen=True, slots=True)
class Shard:
    """One input tar: the unit of work, of retry and of resume.

    Attributes:
        id: depends on the URL alone; safe as a file name; unique.
        url: in canonical spelling.
        size: bytes, None if the object was not there when the manifest was frozen.
        etag: as frozen, None if the store has none.
    """

    id: str
    url: str
    size: int | None
    etag: str | None

    def blob(self) -> Blob:
        """The object as frozen.

        Raises:
            ShardError: it was not there.
        """
        if self.size is None:
            raise ShardError(ShardFault.MISSING, f"{self.url}: no such object; check the name, or take it off the list")
        return Blob(self.url, self.size, self.etag)


def shard_id(url: str) -> str:
    """`<sanitised stem>-<12 hex of sha256(canonical URL)>`."""
    url = canonical(url)
    name = url.rpartition("/")[2]
    for suffix in sorted(SHARD_SUFFIXES, key=len, reverse=True):
        name = name.removesuffix(suffix)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip(".")[:80] or "shard"
    return f"{stem}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"


def freeze(storage: Storage, specs: Iterable[str]) -> list[Shard]:
    """Every shard the specs name, once, sorted by URL, with size and ETag as they are now.

    A name written out in full (braces, lists) whose object is missing stays in the list with `size` None: it must show
    in the accounts. A pattern or folder that matches nothing is an error.

    Raises:
        UsageError: a spec is not allowed, is neither a shard nor a folder, or matches nothing.
        StorageError: a store did not answer.
    """
    places = list(islice((name for spec in _specs(storage, specs) for name in expand_braces(spec)), MAX_SHARDS + 1))
    if len(places) > MAX_SHARDS:
        raise UsageError(f"the shards given are more than {MAX_SHARDS:,}; check the braces")
    named = [canonical(place) for place in places if place.endswith(SHARD_SUFFIXES) and not _is_pattern(place)]
    others = [place for place in places if _is_pattern(place) or not place.endswith(SHARD_SUFFIXES)]
    with ThreadPoolExecutor(STAT_THREADS) as pool:
        found = [blob for blobs in pool.map(lambda place: _search(storage, place), others) for blob in blobs]
        shards = {blob.url: _shard(blob.url, blob) for blob in found}
        shards |= _look_up(storage, dict.fromkeys(named), pool)
    if not shards:
        raise UsageError("no shards: give at least one URL, glob, folder or @list")
    return [shards[url] for url in sorted(shards)]


def to_parquet(shards: Iterable[Shard]) -> bytes:
    """A manifest as Parquet bytes."""
    rows = list(shards)
    columns = [[s.id for s in rows], [s.url for s in rows], [s.size for s in rows], [s.etag for s in rows]]
    sink = io.BytesIO()
    pq.write_table(pa.table(columns, SCHEMA), sink, compression="zstd")
    return sink.getvalue()


def from_parquet(data: bytes) -> list[Shard]:
    """The shards of a manifest written by `to_parquet`.

    Raises:
        UsageError: it is damaged, or no manifest.
    """
    try:
        columns = pq.read_table(io.BytesIO(data), columns=SCHEMA.names).cast(SCHEMA).to_pydict()
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise UsageError(f"manifest.parquet is damaged ({error}); restore it, or choose another output") from error
    return [Shard(*row) for row in zip(*(columns[name] for name in SCHEMA.names), strict=True)]


# --- what a spec names ------------------------------------------------------------------------------------------------


def _specs(storage: Storage, specs: Iterable[str]) -> Iterator[str]:
    """The specs, with every list replaced by its lines."""
    for spec in map(str.strip, specs):
        if spec.startswith("@"):
            yield from list_lines(storage, spec[1:])
        elif spec:
            yield spec


def list_lines(storage: Storage, url: str) -> Iterator[str]:
    """The specs in a list, without comments.

    Raises:
        UsageError: there is no such list, or it is no text, or it names what it must not.
    """
    remote = scheme_of(url) != "file"
    try:
        lines = storage.read(url).decode("utf-8-sig").splitlines()
    except NotFound as error:
        raise UsageError(f"@{redact(url)}: no such list") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"@{redact(url)}: a list must be UTF-8 text, one URL or path per line ({error})") from error
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        if line.startswith("@"):
            raise UsageError(f"{redact(url)}, line {number}: a list must not name other lists, got {line!r}")
        if remote and scheme_of(line) == "file":
            raise UsageError(f"{redact(url)}, line {number}: a remote list must not name local files, got {line!r}")
        yield line


def expand_braces(spec: str) -> Iterator[str]:
    """Expand `{000..123}` (zero-padded as written) and `{a,b}`, which may be nested."""
    match = re.search(r"\{([^{}]*)\}", spec)
    if match:
        for choice in _choices(match[1], spec):
            yield from expand_braces(spec[: match.start()] + choice + spec[match.end() :])
    elif "{" in spec or "}" in spec:
        raise UsageError(f"unbalanced braces in {redact(spec)!r}")
    else:
        yield spec


def _choices(body: str, spec: str) -> Iterable[str]:
    numeric = re.fullmatch(r"(\d+)\.\.(\d+)", body)
    if numeric is None:
        if "," not in body:
            raise UsageError(f"braces must hold {{first..last}} or {{a,b,...}}, got {{{body}}} in {redact(spec)!r}")
        return body.split(",")
    first, last = int(numeric[1]), int(numeric[2])
    if not first <= last < first + MAX_SHARDS:
        raise UsageError(
            f"braces must count upwards, to {MAX_SHARDS:,} shards at most, got {{{body}}} in {redact(spec)!r}"
        )
    padded = any(len(number) > 1 and number.startswith("0") for number in numeric.groups())
    width = max(map(len, numeric.groups())) if padded else 0
    return (f"{number:0{width}d}" for number in range(first, last + 1))


def _is_pattern(place: str) -> bool:
    return any(sign in place for sign in "*?[")


# --- what is there ----------------------------------------------------------------------------------------------------


def _search(storage: Storage, place: str) -> list[Blob]:
    """The objects of a glob, of a folder, or the one object whose name has no suffix of a shard."""
    if _is_pattern(place):
        found, problem = storage.glob(place), "nothing matches this pattern"
    else:
        if not place.endswith("/"):
            with suppress(NotFound):  # a folder, then
                return [storage.stat(place)]
        found = [blob for blob in storage.list_folder(place) if blob.url.endswith(SHARD_SUFFIXES)]
        problem = f"neither a file nor a folder that holds shards ({', '.join(SHARD_SUFFIXES)})"
    if not found:
        raise UsageError(f"{redact(place)}: {problem}")
    return found


def _look_up(storage: Storage, urls: Iterable[str], pool: ThreadPoolExecutor) -> dict[str, Shard]:
    """The shards of names that were written out in full, by URL; those that are not there too."""
    folders: dict[str, list[str]] = defaultdict(list)
    for url in urls:
        folders[url.rpartition("/")[0]].append(url)
    long = [folder for folder, names in folders.items() if len(names) >= LISTED_NAMES]
    listings = dict(zip(long, pool.map(lambda folder: _listed(storage, folder), long), strict=True))
    shards: dict[str, Shard] = {}
    single: list[str] = []
    for folder, names in folders.items():
        listing = listings.get(folder)
        if listing is None:
            single += names
        else:
            shards |= {url: _shard(url, listing.get(url)) for url in names}
    return shards | {url: _shard(url, blob) for url, blob in zip(single, _stat_all(storage, single, pool), strict=True)}


def _shard(url: str, blob: Blob | None) -> Shard:
    return Shard(shard_id(url), url, None, None) if blob is None else Shard(shard_id(url), url, blob.size, blob.etag)


def _listed(storage: Storage, folder: str) -> dict[str, Blob] | None:
    """The objects of a folder by URL; None if it cannot be listed, though its objects may be readable."""
    try:
        return {blob.url: blob for blob in storage.list_folder(folder)}
    except (UsageError, NotFound):  # no permission to list; a link that leads nowhere
        return None


def _stat_all(storage: Storage, urls: list[str], pool: ThreadPoolExecutor) -> Iterator[Blob | None]:
    def stat(url: str) -> Blob | None:
        try:
            return storage.stat(url)
        except NotFound:
            return None

    for start in range(0, len(urls), STAT_BATCH):
        yield from pool.map(stat, urls[start : start + STAT_BATCH])
