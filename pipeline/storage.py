"""The one owner of transport: every byte that Tokenmill reads or publishes goes through a `Storage`.

* A shard is read as one sequential stream at a fixed memory budget (`Storage.stream`); a broken read is resumed at its
  offset and only while the object is still the one that was frozen in the manifest.
* Retries have one owner, tenacity, here. The clients' own retries are turned down.
* `Storage.create` publishes a finished local file under a name only if that name is free.

This is the only module that imports fsspec.
"""

import hashlib
import os
import queue
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

import fsspec
from pydantic import BaseModel, ConfigDict, Field, field_validator
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from pipeline.errors import (
    AlreadyExists,
    NotFound,
    ShardError,
    ShardFault,
    StorageError,
    StoreRefused,
    TokenmillError,
    UsageError,
)
from pipeline.urls import HTTP_SCHEMES, canonical, local_path, redact, scheme_of

T = TypeVar("T")

SECRET_OPTIONS = ("key", "secret", "token", "password", "account_key", "sas_token", "connection_string", "credential")
BLOCK_BYTES = 8 << 20  # one ranged read; larger gained nothing on loopback
BLOCKS_AHEAD = 4  # so at most 4 x 8 MB of a shard wait in memory


class StorageConfig(BaseModel):
    """How stores are reached. Credentials never stand here: they come from the provider chain of the store."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    options: Mapping[str, Any] = Field(
        {}, description="keyword arguments for the fsspec filesystem (endpoint_url, anon, requester_pays, ...)"
    )
    stall_seconds: float = Field(60.0, gt=0, description="a request without an answer for so long is cut (seconds)")
    retry_seconds: float = Field(120.0, ge=0, description="how long one request is tried again in all (seconds)")
    allow_http: bool = Field(False, description="allow http(s):// inputs")

    @field_validator("options")
    @classmethod
    def _no_secrets(cls, options: Mapping[str, Any]) -> Mapping[str, Any]:
        if named := sorted(set(options) & set(SECRET_OPTIONS)):
            raise ValueError(
                f"storage.options must not hold credentials, got {', '.join(named)}; use the store's own provider "
                "chain instead (environment, profile, instance or workload identity)"
            )
        return options


@dataclass(frozen=True, slots=True)
class Blob:
    """One object as it was seen: `size` in bytes, `etag` changes when the content does (None: the store has none)."""

    url: str
    size: int
    etag: str | None


class ByteStream(Protocol):
    """A sequential stream of bytes."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes, b"" at the end only."""
        ...


class Storage:
    """Access to all stores with one configuration. Cheap to make, picklable, safe to share between threads."""

    def __init__(self, config: StorageConfig | None = None) -> None:
        self.config = config or StorageConfig()

    def stat(self, url: str) -> Blob:
        """Size and ETag of one object.

        Raises:
            NotFound: there is no object of this name.
            StorageError: the store did not answer within `retry_seconds`.
        """
        fs, path = self._open_fs(url)
        return self._retry(url, lambda: _blob(url, fs.info(path)))

    def exists(self, url: str) -> bool:
        """Whether an object of this name is there."""
        try:
            self.stat(url)
        except NotFound:
            return False
        return True

    def list_folder(self, folder: str, suffix: str = "") -> list[Blob]:
        """The objects directly in `folder` whose names end in `suffix`, sorted by URL; empty if there is no folder."""
        fs, path = self._open_fs(folder)
        base = canonical(folder)

        def entries() -> list[dict[str, Any]]:
            try:
                return list(fs.ls(path, detail=True))
            except FileNotFoundError:
                return []

        found = [e for e in self._retry(folder, entries) if e["type"] == "file" and e["name"].endswith(suffix)]
        return sorted((_blob(f"{base}/{e['name'].rpartition('/')[2]}", e) for e in found), key=lambda blob: blob.url)

    def glob(self, pattern: str) -> list[Blob]:
        """The objects that match a shell pattern (`*`, `?`, `[...]`, `**`), sorted by URL."""
        fs, path = self._open_fs(pattern)
        prefix = "file://" if scheme_of(pattern) == "file" else canonical(pattern).partition("://")[0] + "://"
        found = self._retry(pattern, lambda: fs.glob(path, detail=True))
        return sorted(
            (_blob(prefix + name, info) for name, info in found.items() if info["type"] == "file"),
            key=lambda blob: blob.url,
        )

    def read(self, url: str) -> bytes:
        """A whole small object."""
        fs, path = self._open_fs(url)
        return self._retry(url, lambda: bytes(fs.cat_file(path)))

    def write(self, url: str, data: bytes) -> None:
        """Write a small object whole, replacing what is there. For files that can be derived again, never for parts."""
        local = local_path(url)
        if local is None:
            fs, path = self._open_fs(url)
            self._retry(url, lambda: fs.pipe_file(path, data))
            return
        with _translated(url):
            local.parent.mkdir(parents=True, exist_ok=True)
            with _sibling(local) as temporary:
                temporary.write_bytes(data)
                temporary.chmod(0o644)
                os.replace(temporary, local)

    def delete(self, url: str) -> None:
        """Remove one object; nothing happens if it is not there."""
        fs, path = self._open_fs(url)
        with suppress(NotFound):
            self._retry(url, lambda: fs.rm_file(path))

    @contextmanager
    def open_random(self, url: str) -> Iterator[BinaryIO]:
        """A seekable file for readers of footers and columns (Parquet).

        Raises:
            NotFound: there is no object of this name.
        """
        fs, path = self._open_fs(url)
        with self._retry(url, lambda: fs.open(path, "rb")) as file, _translated(url):
            yield file

    @contextmanager
    def stream(self, blob: Blob) -> Iterator[ByteStream]:
        """The bytes of `blob` in order, at most `BLOCKS_AHEAD` blocks of it in memory.

        Raises:
            ShardError: the object is missing, or is no longer the one that `blob` describes.
            StorageError: the store did not answer within `retry_seconds`.
        """
        try:
            now = self.stat(blob.url)
        except NotFound as error:
            raise ShardError(ShardFault.MISSING, f"{blob.url}: no such object; was it moved or deleted?") from error
        if now.size != blob.size or (blob.etag and now.etag != blob.etag):
            raise _changed(blob)
        local = local_path(blob.url)
        if local is not None:
            with _translated(blob.url), open(local, "rb", buffering=0) as file:
                yield file
            return
        ahead = _ReadAhead(lambda offset, size: self._read_range(blob, offset, size), blob.size)
        try:
            yield ahead
        finally:
            ahead.close()

    def create(self, url: str, source: Path) -> None:
        """Publish the finished file `source` under `url` if, and only if, that name is free.

        One atomic operation of the store: `link(2)` on a local disk, a conditional PUT elsewhere. Nobody can ever see
        a part of the file.

        Raises:
            AlreadyExists: the name is taken (perhaps by this very call, if its acknowledgement was lost).
            StoreRefused: the kind of store has no create-if-absent.
            StorageError: the outcome is unknown: look before trying again.
        """
        local = local_path(url)
        if local is not None:
            with _translated(url):
                _link(source, local)
            return
        fs, path = self._open_fs(url)
        if not _conditional(fs):
            raise StoreRefused(f"{canonical(url)}: {type(fs).__name__} offers no create-if-absent")
        with _translated(url):
            fs.put_file(str(source), path, mode="create")

    def put(self, url: str, source: Path) -> None:
        """Publish the finished file `source` under `url`, whatever stood there.

        Raises:
            StorageError: the outcome is unknown.
        """
        fs, path = self._open_fs(url)
        with _translated(url):
            fs.put_file(str(source), path)

    def localize(self, url: str, names: tuple[str, ...] = ()) -> Path:
        """A local folder with the files of the folder `url`: itself if local, else a downloaded copy.

        Args:
            url: a folder.
            names: suffixes of the file names wanted; all files if empty.
        """
        local = local_path(url)
        if local is not None:
            return local
        root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tokenmill"
        blobs = [b for b in self.list_folder(url) if not names or b.url.endswith(names)]
        version = hashlib.sha256(repr(blobs).encode()).hexdigest()[:16]
        target = root / f"{canonical(url).rpartition('/')[2]}-{version}"
        if blobs and not target.exists():
            root.mkdir(parents=True, exist_ok=True)
            part = Path(tempfile.mkdtemp(dir=root))
            try:
                for blob in blobs:
                    (part / blob.url.rpartition("/")[2]).write_bytes(self.read(blob.url))
                with suppress(OSError):  # another process was first with the same files
                    part.rename(target)
            finally:
                shutil.rmtree(part, ignore_errors=True)
        return target

    def _open_fs(self, url: str) -> tuple[Any, str]:
        scheme = scheme_of(url)
        if scheme == "file":
            return fsspec.filesystem("file"), canonical(url).removeprefix("file://")
        if scheme in HTTP_SCHEMES and not self.config.allow_http:
            raise UsageError(f"{redact(url)}: http(s) is off; set storage.allow_http to read from it")
        options: dict[str, Any] = {"use_listings_cache": False, **self.config.options}
        if scheme == "s3":
            quiet = {"retries": {"total_max_attempts": 1}, "read_timeout": self.config.stall_seconds}
            options["config_kwargs"] = {**quiet, "connect_timeout": 10, **dict(options.get("config_kwargs", {}))}
        try:
            fs = fsspec.filesystem(scheme, **options)
        except ImportError as error:
            raise UsageError(f"{redact(url)}: the client for {scheme}:// is not installed ({error})") from error
        if scheme == "s3":
            fs.retries = 1  # ours is the only retry
        return fs, fs._strip_protocol(redact(url))

    def _read_range(self, blob: Blob, offset: int, size: int) -> bytes:
        """Bytes [offset, offset + size) of exactly this version of the object."""
        fs, path = self._open_fs(blob.url)

        def attempt() -> bytes:
            with fs.open(path, "rb", cache_type="none") as file:  # s3fs: sends If-Match with each range
                if blob.etag and _blob(blob.url, file.details).etag != blob.etag:
                    raise _changed(blob)
                file.seek(offset)
                data = bytes(file.read(size))
            if len(data) != size:
                raise StorageError(f"{blob.url}: {len(data)} of {size} bytes at offset {offset}: the body was cut")
            return data

        return self._retry(blob.url, attempt)

    def _retry(self, url: str, call: Callable[[], T]) -> T:
        """The one retry policy: transport errors only, with full jitter, within `retry_seconds`."""
        for attempt in Retrying(
            stop=stop_after_delay(self.config.retry_seconds),
            wait=wait_random_exponential(multiplier=0.2, max=15),
            retry=retry_if_exception(_transient),
            reraise=True,
        ):
            with attempt, _translated(url):
                return call()
        raise AssertionError("tenacity neither returned nor raised")


class _ReadAhead:
    """A sequential stream whose blocks are fetched by a thread, a bounded number of them ahead of the reader."""

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        self._blocks: queue.Queue[bytes | BaseException] = queue.Queue(BLOCKS_AHEAD)
        self._rest = memoryview(b"")
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(fetch, size), name="fetch", daemon=True)
        self._thread.start()

    def _run(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        try:
            for offset in range(0, size, BLOCK_BYTES):
                if not self._put(fetch(offset, min(BLOCK_BYTES, size - offset))):
                    return
            self._put(b"")
        except BaseException as error:  # noqa: BLE001 - handed to the reader, who raises it
            self._put(error)

    def _put(self, item: bytes | BaseException) -> bool:
        while not self._closed.is_set():
            with suppress(queue.Full):
                self._blocks.put(item, timeout=0.5)
                return True
        return False

    def read(self, size: int, /) -> bytes:
        if not self._rest:
            block = self._blocks.get()
            if isinstance(block, BaseException):
                raise block
            if not block:
                self._blocks.put(b"")  # the end stays the end
            self._rest = memoryview(block)
        data, self._rest = self._rest[:size], self._rest[size:]
        return bytes(data)

    def close(self) -> None:
        self._closed.set()


@contextmanager
def _translated(url: str) -> Iterator[None]:
    """Turn what clients raise into the errors of this project."""
    try:
        yield
    except TokenmillError:
        raise
    except FileNotFoundError as error:
        raise NotFound(f"{redact(url)}: not found") from error
    except FileExistsError as error:
        raise AlreadyExists(f"{redact(url)}: exists already") from error
    except PermissionError as error:
        raise UsageError(f"{redact(url)}: permission denied; check the credentials and the policy") from error
    except Exception as error:
        if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError"):
            raise UsageError(f"{redact(url)}: no credentials found by the store's provider chain") from error
        if isinstance(error, OSError) and "pre-condition" in str(error):  # s3fs: 412 comes as errno 22
            raise AlreadyExists(f"{redact(url)}: exists already") from error
        raise StorageError(f"{redact(url)}: {type(error).__name__}: {error}") from error


def _transient(error: BaseException) -> bool:
    return isinstance(error, StorageError) and not isinstance(error, NotFound)


def _changed(blob: Blob) -> ShardError:
    return ShardError(
        ShardFault.CHANGED,
        f"{blob.url}: the object is not the one frozen in the manifest ({blob.size} bytes, ETag {blob.etag}); "
        "restore it, or give the new content a new name",
    )


def _blob(url: str, info: Mapping[str, Any]) -> Blob:
    if info.get("type") == "directory":
        raise NotFound(f"{redact(url)}: is a folder, not an object")
    etag = info.get("ETag") or info.get("etag") or info.get("blob_id")
    if etag is None and "mtime" in info:  # local files: nanoseconds are lost in `mtime`, enough to notice a rewrite
        etag = f"{info['mtime']:.6f}"
    return Blob(canonical(url), int(info["size"]), str(etag).strip('"') if etag is not None else None)


def _conditional(fs: object) -> bool:
    return type(fs).__name__ in ("S3FileSystem", "GCSFileSystem", "AzureBlobFileSystem")


@contextmanager
def _sibling(target: Path) -> Iterator[Path]:
    """A temporary name beside `target` that is gone afterwards. The dot hides it from every glob of parts."""
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _link(source: Path, target: Path) -> None:
    """Make `target` a complete copy of `source` in one step, failing if it exists."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with _sibling(target) as temporary:
        shutil.copyfile(source, temporary)
        temporary.chmod(0o644)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.link(temporary, target)
