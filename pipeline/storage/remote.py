"""Object stores through fsspec, which this is the only file to import. Every client sends each request once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec

from pipeline.errors import StorageError, StoreRefused, UsageError
from pipeline.storage.blob import Blob, Handle
from pipeline.storage.config import StorageConfig
from pipeline.storage.failures import answer
from pipeline.urls import HTTP_SCHEMES, canonical, redact, scheme_of

CONDITIONAL_STORES = ("S3FileSystem", "GCSFileSystem", "AzureBlobFileSystem")
VERSION_FIELDS = ("ETag", "etag", "blob_id", "Last-Modified")  # s3 and http; gs and abfs; hf; http without ETag
CONNECT_SECONDS = 10
CONNECTIONS = 64  # of one client, which all threads of a process share

# s3fs sends files of up to twice this size in one conditional PUT. Above, the condition stands on the completion of a
# multipart upload, which fewer stores honour and which leaves its parts behind when the process dies.
PUT_CHUNK_BYTES = 256 << 20


class ObjectStore:
    """A `Store` of S3, GCS, Azure, the Hugging Face Hub, or read-only http."""

    def __init__(self, config: StorageConfig) -> None:
        self._config = config

    def stat(self, url: str) -> Blob:
        fs, path = self._locate(url)
        return _blob(url, fs.info(path))

    def list_folder(self, folder: str) -> list[Blob]:
        fs, path = self._listable(folder)
        try:
            entries = fs.ls(path, detail=True)
        except FileNotFoundError as error:
            if answer(error)[1] == "NoSuchBucket":
                raise
            return []
        # S3 lists the folder's own placeholder too, and an object under itself
        files = [e for e in entries if e["type"] == "file" and e["name"].rstrip("/") != path.rstrip("/")]
        return [_blob(f"{canonical(folder)}/{e['name'].rpartition('/')[2]}", e) for e in files]

    def glob(self, pattern: str) -> list[Blob]:
        fs, path = self._listable(pattern)
        scheme, _, rest = canonical(pattern).partition("://")
        place = f"{scheme}://{rest.partition('/')[0]}"  # names begin with the bucket, however it is spelled here
        found = fs.glob(path, detail=True).items()
        return [_blob(f"{place}/{name.partition('/')[2]}", e) for name, e in found if e["type"] == "file"]

    def read(self, url: str) -> bytes:
        fs, path = self._locate(url)
        return bytes(fs.cat_file(path))

    def write(self, url: str, data: bytes) -> None:
        fs, path = self._locate(url)
        fs.pipe_file(path, data)

    def delete(self, url: str) -> None:
        fs, path = self._locate(url)
        fs.rm_file(path)

    def open(self, url: str) -> tuple[Blob, Handle]:
        fs, path = self._locate(url)
        file = fs.open(path, "rb", cache_type="none")  # s3fs: sends If-Match with each range
        details = fs.info(path) if scheme_of(url) in HTTP_SCHEMES else file.details  # http forgets the ETag
        return _blob(url, details), file

    def create(self, url: str, source: Path) -> None:
        fs, path = self._locate(url)
        if type(fs).__name__ not in CONDITIONAL_STORES:
            raise StoreRefused(f"{redact(url)}: {scheme_of(url)}:// has no create-if-absent")
        fs.put_file(str(source), path, mode="create", **_one_request(url))

    def put(self, url: str, source: Path) -> None:
        fs, path = self._locate(url)
        fs.put_file(str(source), path, **_one_request(url))

    def _locate(self, url: str) -> tuple[Any, str]:
        """The client for a URL, one per process and place, and the path by which it knows the object."""
        scheme = scheme_of(url)
        if scheme in HTTP_SCHEMES and not self._config.allow_http:
            raise UsageError(f"{redact(url)}: http(s) is off; set storage.allow_http to read from it")
        options: dict[str, Any] = {"use_listings_cache": False, **self._config.options}
        if scheme == "s3":
            options |= self._s3_options()
        try:
            fs, path = fsspec.url_to_fs(canonical(url), **options)
        except ImportError as error:
            raise UsageError(f"{redact(url)}: the client for {scheme}:// is not installed ({error})") from error
        if scheme == "s3":
            fs.retries = 1  # requests, not repeats
        return fs, path

    def _listable(self, url: str) -> tuple[Any, str]:
        if scheme_of(url) in HTTP_SCHEMES:
            raise UsageError(f"{redact(url)}: http has no folders and no patterns; name each object, or give an @list")
        return self._locate(url)

    def _s3_options(self) -> dict[str, Any]:
        given = self._config.options
        quiet = {
            "retries": {"total_max_attempts": 1},
            "read_timeout": self._config.stall_seconds,
            "connect_timeout": CONNECT_SECONDS,
            "max_pool_connections": CONNECTIONS,
        }
        return {
            # `cat_file` in one request: concurrent ranges could mix two versions of an object
            "max_concurrency": given.get("max_concurrency", 1),
            "config_kwargs": {**quiet, **given.get("config_kwargs", {})},
        }


def _one_request(url: str) -> dict[str, int]:
    return {"chunksize": PUT_CHUNK_BYTES} if scheme_of(url) == "s3" else {}


def _blob(url: str, info: Mapping[str, Any]) -> Blob:
    if info.get("type") == "directory":
        raise IsADirectoryError(redact(url))
    if info.get("size") is None:
        raise StorageError(f"{redact(url)}: the server does not tell how long the object is")
    etag = next((info[name] for name in VERSION_FIELDS if info.get(name)), None)
    return Blob(canonical(url), int(info["size"]), str(etag).strip('"') if etag else None)
