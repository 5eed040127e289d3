"""`Storage`: what the rest of Tokenmill knows of stores."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from copy import copy
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from threading import Event
from typing import BinaryIO, TypeVar, cast

from pipeline.errors import NotFound, ShardError, ShardFault, StorageError
from pipeline.storage import multipart
from pipeline.storage.blob import Blob, ByteStream, Store
from pipeline.storage.config import StorageConfig
from pipeline.storage.failures import Forbidden, RequestRefused
from pipeline.storage.local import LocalDisk
from pipeline.storage.rate import pace_of
from pipeline.storage.reading import BLOCK_BYTES, RandomFile, ReadAhead, Replaced, Version
from pipeline.storage.remote import ObjectStore
from pipeline.storage.retry import Budget, Persistence
from pipeline.urls import canonical, local_path, scheme_of

WILDCARDS = "*?["

T = TypeVar("T")


class Storage:
    """Access to all stores with one configuration. Cheap to make, picklable, safe to share between threads.

    Every method raises UsageError if the URL is not allowed, or the bucket or the permission is missing, and
    StorageError if the store did not answer within `retry_seconds`.
    """

    def __init__(self, config: StorageConfig | None = None) -> None:
        self.config = config or StorageConfig()
        self._moved: Callable[[], object] = _nothing

    def watched(self, moved: Callable[[], object]) -> "Storage":
        """The same storage, which calls `moved` when a remote store has taken some more of a file, from any thread.

        What it raises would break the upload. The Hugging Face Hub tells nothing, nor does a local disk.
        """
        watched = copy(self)
        watched._moved = moved
        return watched

    def stat(self, url: str) -> Blob:
        """Size and ETag of one object.

        Raises:
            NotFound: there is no object of this name.
        """
        return self._call(url, lambda store: store.stat(url))

    def exists(self, url: str) -> bool:
        """Whether an object of this name is there."""
        try:
            self.stat(url)
        except NotFound:
            return False
        return True

    def list_folder(self, folder: str, suffix: str = "") -> list[Blob]:
        """The objects directly in `folder` whose names end in `suffix`, sorted by URL; empty if there is no folder.

        Raises:
            NotFound: a local link leads nowhere.
        """
        found: list[Blob] = []
        page, more = self._call(folder, lambda store: store.list_page(folder, None))
        while True:
            found += (blob for blob in page if blob.url.endswith(suffix))
            if more is None:
                return sorted(found, key=lambda blob: blob.url)
            # a page at a time, so that one that fails is asked for again alone
            page, more = self._call(folder, partial(_list_page, folder, more))

    def glob(self, pattern: str) -> list[Blob]:
        """The objects that match a shell pattern (`*`, `?`, `[...]`, `**` for folders), sorted by URL.

        Raises:
            NotFound: a local link leads nowhere.
        """
        folder, _, name = pattern.rpartition("/")
        if scheme_of(pattern) == "file" or "**" in name or any(char in folder for char in WILDCARDS):
            return sorted(self._call(pattern, lambda store: store.glob(pattern)), key=lambda blob: blob.url)
        return [blob for blob in self.list_folder(folder) if fnmatchcase(blob.url.rpartition("/")[2], name)]

    def read(self, url: str) -> bytes:
        """A whole small object.

        Raises:
            NotFound: there is no object of this name.
        """
        return self._call(url, partial(_read_whole, url))

    def write(self, url: str, data: bytes) -> None:
        """Write a small object whole, replacing what is there. For files that can be derived again, never for parts."""
        self._call(url, lambda store: store.write(url, data))

    def delete(self, url: str) -> None:
        """Remove one object; nothing happens if it is not there."""
        with suppress(NotFound):
            self._call(url, lambda store: store.delete(url))

    @contextmanager
    def stream(self, blob: Blob) -> Iterator[ByteStream]:
        """The bytes of `blob` in order, with a fixed number of blocks of it in memory.

        All its requests share one budget of seconds that may be lost to failures. On a clean end the object is looked
        at once more: what was read is what `blob` describes, on every store.

        Raises:
            ShardError: the object is missing or forbidden, or is no longer the one that `blob` describes.
        """
        closed, budget = Event(), self._budget(blob.size)
        with _as_shard_error(blob):
            version = self._call(blob.url, partial(_open_frozen, blob), budget)
        with closing(version):

            def fetch(offset: int, size: int) -> bytes:
                with _as_shard_error(blob):
                    return self._call(blob.url, partial(_read_frozen, blob, version, offset, size), budget, closed)

            with closing(ReadAhead(fetch, blob.size)) as ahead:
                try:
                    yield ahead
                finally:
                    closed.set()
        with _as_shard_error(blob):
            self._call(blob.url, partial(_stat_frozen, blob), budget)

    @contextmanager
    def open_random(self, url: str) -> Iterator[BinaryIO]:
        """A seekable file for readers of footers and columns (Parquet), of one version of the object.

        Raises:
            NotFound: there is no object of this name.
        """
        with closing(_Reopened(partial(self._call, url, partial(_open, url)))) as version:

            def fetch(offset: int, size: int) -> bytes:
                return self._call(url, lambda _: version.read(offset, size))

            yield cast("BinaryIO", RandomFile(fetch, version.size))

    def create(self, url: str, source: Path) -> None:
        """Publish the finished file `source` under `url` if, and only if, that name is free.

        One atomic operation of the store: `link(2)` on a local disk, a conditional PUT elsewhere. Nobody can ever see
        a part of the file.

        Raises:
            AlreadyExists: the name is taken (perhaps by this very call, if its acknowledgement was lost).
            StoreRefused: the kind of store has no create-if-absent.
            StorageError: the outcome is unknown: look before trying again.
        """
        self._send(url, source, if_absent=True)

    def create_in_parts(self, url: str, source: Path) -> None:
        """`create` by a multipart upload, whatever the size: for the probe."""
        self._send_in_parts(url, source, if_absent=True)

    def in_parts(self, url: str, size: int) -> bool:
        """Whether `create` would send a file of `size` bytes to `url` by a multipart upload."""
        return scheme_of(url) == "s3" and size > multipart.ONE_PUT_BYTES

    def put(self, url: str, source: Path) -> None:
        """Publish the finished file `source` under `url`, whatever stood there.

        Raises:
            StorageError: the outcome is unknown.
        """
        self._send(url, source, if_absent=False)

    def localize(self, url: str, names: tuple[str, ...] = ()) -> Path:
        """A local folder with the files of the folder `url`: itself if local, else a downloaded copy.

        The copy is kept in the user's cache under a name that changes with the files. If `url` holds none of them, the
        folder returned does not exist.

        Args:
            url: a folder.
            names: suffixes of the file names wanted; all files if empty.
        """
        local = local_path(url)
        if local is not None:
            return local
        root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tokenmill"

        def wanted() -> list[Blob]:
            return [blob for blob in self.list_folder(url) if not names or blob.url.endswith(names)]

        blobs = wanted()
        version = hashlib.sha256(repr(blobs).encode()).hexdigest()[:16]
        target = root / f"{canonical(url).rpartition('/')[2]}-{version}"
        if blobs and not target.exists():
            root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=root, ignore_cleanup_errors=True) as folder:
                for blob in blobs:
                    self._download(blob, Path(folder, blob.url.rpartition("/")[2]))
                if wanted() != blobs:
                    raise StorageError(f"{canonical(url)}: changed while it was copied; run again")
                _settle_folder(Path(folder), target)
        return target

    def _download(self, blob: Blob, target: Path) -> None:
        with self.open_random(blob.url) as source, open(target, "xb") as file:
            shutil.copyfileobj(source, file, BLOCK_BYTES)

    def _send(self, url: str, source: Path, *, if_absent: bool) -> None:
        if self.in_parts(url, source.stat().st_size if source.exists() else 0):
            self._send_in_parts(url, source, if_absent=if_absent)
        elif if_absent:
            self._call(url, lambda store: store.create(url, source))
        else:
            self._call(url, lambda store: store.put(url, source))

    def _send_in_parts(self, url: str, source: Path, *, if_absent: bool) -> None:
        call = partial(self._persistence(url, self._budget(source.stat().st_size)).call, url)
        multipart.send(ObjectStore(self.config, self._moved), call, url, source, if_absent=if_absent)

    def _call(
        self, url: str, action: Callable[[Store], T], budget: Budget | None = None, cancelled: Event | None = None
    ) -> T:
        """Do something with the store of `url`, with the one retry policy for transport errors of remote stores."""
        store: Store = LocalDisk() if scheme_of(url) == "file" else ObjectStore(self.config, self._moved)
        return self._persistence(url, budget, cancelled).call(url, lambda: action(store))

    def _persistence(self, url: str, budget: Budget | None = None, cancelled: Event | None = None) -> Persistence:
        seconds = self.config.retry_seconds if scheme_of(url) != "file" else 0
        return Persistence(
            seconds=seconds,
            pace=pace_of(_place(url, self.config)),
            renew=partial(ObjectStore(self.config).renew, url),
            budget=budget or Budget(seconds),
            cancelled=cancelled or Event(),
        )

    def _budget(self, size: int) -> Budget:
        return Budget.of_size(self.config.retry_seconds, size)


def _nothing() -> None:
    """What an upload calls that nobody watches."""


def _place(url: str, config: StorageConfig) -> str:
    """What shares one limit of requests: a bucket at an endpoint."""
    scheme, _, rest = canonical(url).partition("://")
    bucket = "" if scheme == "file" else rest.partition("/")[0]
    return f"{config.options.get('endpoint_url', '')} {scheme}://{bucket}"


class _Reopened:
    """A version of an object that may still be exchanged for a newer one, as long as no byte of it was given out."""

    def __init__(self, open_version: Callable[[], Version]) -> None:
        self._open, self._version, self._given = open_version, open_version(), False
        self.size = self._version.blob.size

    def read(self, offset: int, size: int) -> bytes:
        try:
            data = self._version.read(offset, size)
        except Replaced:
            if self._given:
                raise
            self._version.close()
            self._version = self._open()
            if self._version.blob.size != self.size:
                raise
            data = self._version.read(offset, size)
        self._given = True
        return data

    def close(self) -> None:
        self._version.close()


def _open(url: str, store: Store) -> Version:
    return Version(partial(store.open, url))


def _read_whole(url: str, store: Store) -> bytes:
    with closing(_open(url, store)) as version:
        try:
            return version.read(0, version.blob.size) if version.blob.size else b""
        except Replaced as error:
            raise StorageError(f"{error}; read it again") from error


def _open_frozen(blob: Blob, store: Store) -> Version:
    version = _open(blob.url, store)
    if not version.blob.same_content(blob):
        version.close()
        raise _replaced_or_passing(blob, store)
    return version


def _read_frozen(blob: Blob, version: Version, offset: int, size: int, store: Store) -> bytes:
    try:
        return version.read(offset, size)
    except Replaced as error:
        raise _replaced_or_passing(blob, store) from error


def _stat_frozen(blob: Blob, store: Store) -> None:
    if not store.stat(blob.url).same_content(blob):
        raise _replaced_or_passing(blob, store)


def _replaced_or_passing(blob: Blob, store: Store) -> StorageError:
    """The store spoke of another version than `blob`: ask once more, as the verdict costs the whole shard."""
    if store.stat(blob.url).same_content(blob):
        return StorageError(f"{blob.url}: the store told of another version for a moment")
    return Replaced(f"{blob.url}: the object has changed")


def _list_page(folder: str, more: str, store: Store) -> tuple[list[Blob], str | None]:
    return store.list_page(folder, more)


@contextmanager
def _as_shard_error(blob: Blob) -> Iterator[None]:
    """In reading a shard, a missing, forbidden or changed object is the shard's fault."""
    try:
        yield
    except NotFound as error:
        raise ShardError(ShardFault.MISSING, f"{blob.url}: no such object; was it moved or deleted?") from error
    except (Forbidden, RequestRefused) as error:  # S3 forbids a missing object to who may not list its bucket
        raise ShardError(ShardFault.FORBIDDEN, f"{error}; nothing can be read here") from error
    except Replaced as error:
        raise _changed(blob) from error


def _changed(blob: Blob) -> ShardError:
    return ShardError(
        ShardFault.CHANGED,
        f"{blob.url}: the object is not the one frozen in the manifest ({blob.size} bytes, ETag {blob.etag}); "
        "restore it, or give the new content a new name",
    )


def _settle_folder(folder: Path, target: Path) -> None:
    """Move `folder` to the name `target`, unless another process was first with the same files."""
    try:
        folder.rename(target)
    except OSError:
        if not target.exists():
            raise
