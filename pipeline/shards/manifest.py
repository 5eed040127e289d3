"""The frozen list of input shards: from what a user writes to URL, size and ETag of every object.

A SPEC is a URL or path, with numeric braces `{00000..00999}` or alternatives `{a,b}`, a glob, a folder (its *.tar,
.tgz, .tar.gz and .tar.zst), or `@list.txt` with one SPEC per line.
"""

import hashlib
import io
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import NotFound, ShardError, ShardFault, UsageError
from pipeline.storage import Blob, Storage
from pipeline.urls import canonical, local_path, redact, scheme_of

SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.zst")
MAX_SHARDS = 10_000_000  # a brace typo must not fill the memory
STAT_THREADS = 32  # HEAD requests in flight while freezing a list of names
SCHEMA = pa.schema(
    [("shard_id", pa.string()), ("url", pa.string()), ("size", pa.int64()), ("etag", pa.string())],
)


@dataclass(frozen=True, slots=True)
class Shard:
    """One input tar: the unit of work, of retry and of resume.

    Attributes:
        id: depends on the URL alone; safe as a file name; unique.
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
        UsageError: a spec is not allowed, matches nothing, or two shards differ only in letter case of their id.
    """
    shards: dict[str, Shard] = {}
    names: list[str] = []
    for spec in _specs(storage, specs):
        found = _search(storage, spec)
        if found is None:
            names += _braces(spec)
        else:
            shards.update((blob.url, _shard(blob)) for blob in found)
    with ThreadPoolExecutor(STAT_THREADS) as pool:
        named = pool.map(lambda name: _stat(storage, name), dict.fromkeys(map(canonical, names)))
        shards.update((shard.url, shard) for shard in named)
    if not shards:
        raise UsageError("no shards: give at least one URL, glob, folder or @list")
    return [shards[url] for url in sorted(shards)]


def to_parquet(shards: Iterable[Shard]) -> bytes:
    """A manifest as Parquet bytes."""
    rows = [{"shard_id": s.id, "url": s.url, "size": s.size, "etag": s.etag} for s in shards]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), sink, compression="zstd")
    return sink.getvalue()


def from_parquet(data: bytes) -> list[Shard]:
    """The shards of a manifest written by `to_parquet`."""
    rows = pq.read_table(io.BytesIO(data)).to_pylist()
    return [Shard(row["shard_id"], row["url"], row["size"], row["etag"]) for row in rows]


def _specs(storage: Storage, specs: Iterable[str], via: str | None = None) -> Iterator[str]:
    for raw in specs:
        spec = raw.strip()
        if not spec or (via and spec.startswith("#")):
            continue
        if spec.startswith("@"):
            if via:
                raise UsageError(f"{redact(via)}: a list must not name other lists, got {spec!r}")
            lines = storage.read(spec[1:]).decode().splitlines()
            yield from _specs(storage, lines, via=spec[1:])
            continue
        if via and scheme_of(via) != "file" and scheme_of(spec) == "file":
            raise UsageError(f"{redact(via)}: a remote list must not name local files, got {spec!r}")
        scheme_of(spec)  # refuses what is not allowed
        yield spec


def _search(storage: Storage, spec: str) -> list[Blob] | None:
    """The objects of a glob or a folder; None if the spec is a plain name or has braces."""
    if "{" in spec:
        return None
    if any(sign in spec for sign in "*?["):
        found = storage.glob(spec)
        kind = "pattern"
    elif _is_folder(storage, spec):
        found = [blob for blob in storage.list_folder(spec) if blob.url.endswith(SHARD_SUFFIXES)]
        kind = "folder"
    else:
        return None
    if not found:
        raise UsageError(f"{redact(spec)}: this {kind} holds no shard ({', '.join(SHARD_SUFFIXES)})")
    return found


def _is_folder(storage: Storage, spec: str) -> bool:
    if spec.endswith(SHARD_SUFFIXES):
        return False
    path = local_path(spec)
    if path is not None:
        return path.is_dir()
    return spec.endswith("/") or not storage.exists(spec)


def _braces(spec: str) -> list[str]:
    """Expand `{000..123}` (zero-padded as written) and `{a,b}`, left to right."""
    pending, done = [spec], []
    while pending:
        text = pending.pop()
        match = re.search(r"\{([^{}]*)\}", text)
        if match is None:
            if "{" in text or "}" in text:
                raise UsageError(f"unbalanced braces in {redact(spec)!r}")
            done.append(text)
            continue
        head, tail = text[: match.start()], text[match.end() :]
        choices = list(_choices(match[1], spec))
        if len(choices) * (len(pending) + 1) + len(done) > MAX_SHARDS:
            raise UsageError(f"{redact(spec)!r} names more than {MAX_SHARDS:,} shards; check the braces")
        pending += [head + choice + tail for choice in reversed(choices)]
    return done


def _choices(body: str, spec: str) -> Iterator[str]:
    numeric = re.fullmatch(r"(\d+)\.\.(\d+)", body)
    if numeric is None:
        if "," not in body:
            raise UsageError(f"braces must hold {{first..last}} or {{a,b,...}}, got {{{body}}} in {redact(spec)!r}")
        yield from body.split(",")
        return
    first, last = int(numeric[1]), int(numeric[2])
    if first > last:
        raise UsageError(f"braces must count upwards, got {{{body}}} in {redact(spec)!r}")
    if last - first >= MAX_SHARDS:
        raise UsageError(f"{redact(spec)!r} names more than {MAX_SHARDS:,} shards; check the braces")
    width = len(numeric[1])
    yield from (f"{number:0{width}d}" for number in range(first, last + 1))


def _stat(storage: Storage, url: str) -> Shard:
    try:
        return _shard(storage.stat(url))
    except NotFound:
        return Shard(shard_id(url), url, None, None)


def _shard(blob: Blob) -> Shard:
    return Shard(shard_id(blob.url), blob.url, blob.size, blob.etag)
