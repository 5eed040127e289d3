"""`Storage`: what the rest of Tokenmill knows of stores."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Event
from typing import BinaryIO, TypeVar, cast

from tenacity import Retrying, retry_if_exception, sleep_using_event, stop_any, stop_before_delay, stop_when_event_set
from tenacity import wait_random_exponential as full_jitter

from pipeline.errors import NotFound, ShardError, ShardFault, StorageError, TokenmillError
from pipeline.storage.blob import Blob, ByteStream, Store
from pipeline.storage.config import StorageConfig
from pipeline.storage.failures import translate
from pipeline.storage.local import LocalDisk
from pipeline.storage.reading import BLOCK_BYTES, RandomFile, ReadAhead, Replaced, Version
from pipeline.storage.remote import ObjectStore
from pipeline.urls import canonical, local_path, scheme_of

T = TypeVar("T")


class Storage:
    """Access to all stores with one configuration. Cheap to make, picklable, safe to share between threads.

    Every method raises UsageError if the URL is not allowed, or the bucket or the permission is missing, and
    StorageError if the store did not answer within `retry_seconds`.
    """

    def __init__(self, config: StorageConfig | None = None) -> None:
        self.config = config or StorageConfig()

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
        found = self._call(folder, lambda store: store.list_folder(folder))
        return sorted((blob for blob in found if blob.url.endswith(suffix)), key=lambda blob: blob.url)

    def glob(self, pattern: str) -> list[Blob]:
        """The objects that match a shell pattern (`*`, `?`, `[...]`, `**` for folders), sorted by URL.

        Raises:
            NotFound: a local link leads nowhere.
        """
        return sorted(self._call(pattern, lambda store: store.glob(pattern)), key=lambda blob: blob.url)

    def read(self, url: str) -> bytes:
        """A whole small object.

        Raises:
            NotFound: there is no object of this name.
        """
        return self._call(url, lambda store: store.read(url))

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

        On a clean end the object is looked at once more: what was read is what `blob` describes, on every store.

        Raises:
            ShardError: the object is missing, or is no longer the one that `blob` describes.
        """
        closed = Event()
        with _as_shard_error(blob):
            version = self._open(blob.url)
        with closing(version):
            if not version.blob.same_content(blob):
                raise _changed(blob)

            def fetch(offset: int, size: int) -> bytes:
                with _as_shard_error(blob):
                    return self._call(blob.url, lambda _: version.read(offset, size), closed)

            with closing(ReadAhead(fetch, blob.size)) as ahead:
                try:
                    yield ahead
                finally:
                    closed.set()
        with _as_shard_error(blob):
            now = self.stat(blob.url)
        if not now.same_content(blob):
            raise _changed(blob)

    @contextmanager
    def open_random(self, url: str) -> Iterator[BinaryIO]:
        """A seekable file for readers of footers and columns (Parquet), of one version of the object.

        Raises:
            NotFound: there is no object of this name.
        """
        with closing(self._open(url)) as version:

            def fetch(offset: int, size: int) -> bytes:
                return self._call(url, lambda _: version.read(offset, size))

            yield cast("BinaryIO", RandomFile(fetch, version.blob.size))

    def create(self, url: str, source: Path) -> None:
        """Publish the finished file `source` under `url` if, and only if, that name is free.

        One atomic operation of the store: `link(2)` on a local disk, a conditional PUT elsewhere. Nobody can ever see
        a part of the file.

        Raises:
            AlreadyExists: the name is taken (perhaps by this very call, if its acknowledgement was lost).
            StoreRefused: the kind of store has no create-if-absent.
            StorageError: the outcome is unknown: look before trying again.
        """
        self._call(url, lambda store: store.create(url, source))

    def put(self, url: str, source: Path) -> None:
        """Publish the finished file `source` under `url`, whatever stood there.

        Raises:
            StorageError: the outcome is unknown.
        """
        self._call(url, lambda store: store.put(url, source))

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

    def _open(self, url: str) -> Version:
        return self._call(url, lambda store: Version(partial(store.open, url)))

    def _call(self, url: str, action: Callable[[Store], T], cancelled: Event | None = None) -> T:
        """Do something with the store of `url`: the one retry policy, for transport errors of remote stores only."""
        remote, cancelled = scheme_of(url) != "file", cancelled or Event()
        store: Store = ObjectStore(self.config) if remote else LocalDisk()

        def attempt() -> T:
            try:
                return action(store)
            except TokenmillError:
                raise
            except Exception as error:
                raise translate(error, url) from error

        seconds = self.config.retry_seconds if remote else 0
        policy = Retrying(
            stop=stop_any(stop_before_delay(seconds), stop_when_event_set(cancelled)),
            wait=full_jitter(multiplier=0.2, max=15),
            sleep=sleep_using_event(cancelled),
            retry=retry_if_exception(_passing),
            reraise=True,
        )
        return policy(attempt)


def _passing(error: BaseException) -> bool:
    return isinstance(error, StorageError) and not isinstance(error, NotFound | Replaced)


@contextmanager
def _as_shard_error(blob: Blob) -> Iterator[None]:
    """In reading a shard, a missing or changed object is the shard's fault."""
    try:
        yield
    except NotFound as error:
        raise ShardError(ShardFault.MISSING, f"{blob.url}: no such object; was it moved or deleted?") from error
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
