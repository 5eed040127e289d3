"""Object stores through fsspec, which this is the only file to import. Every client sends each request once."""

import io
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import fsspec

from pipeline.errors import StorageError, StoreRefused, UsageError
from pipeline.storage import hub
from pipeline.storage.blob import Blob, Handle
from pipeline.storage.clients import client_options, send_once
from pipeline.storage.config import StorageConfig
from pipeline.storage.failures import answer
from pipeline.storage.logs import quiet_clients
from pipeline.storage.start import wait_for_turn
from pipeline.urls import HTTP_SCHEMES, canonical, redact, scheme_of

CONDITIONAL_SCHEMES = ("s3", "gs", "abfs")
VERSION_FIELDS = ("ETag", "etag", "blob_id", "Last-Modified")  # s3 and http; gs and abfs; hf; http without ETag
SLOWEST_UPLOAD = 1 << 20  # bytes per second; what is slower is taken for a server that has stopped reading
RENEW_SECONDS = 2.0  # the provider chain is asked no more often, however many threads want it

_renewing = Lock()
_renewed: dict[Any, float] = {}  # client -> when its credentials were forgotten


class ObjectStore:
    """A `Store` of S3, GCS, Azure, the Hugging Face Hub, or read-only http.

    Args:
        config: how to reach it.
        moved: called when the store has taken some more of a file.
    """

    def __init__(self, config: StorageConfig, moved: Callable[[], object] = lambda: None) -> None:
        self._config, self._moved = config, moved

    def stat(self, url: str) -> Blob:
        fs, path = self._locate(url)
        with _explained(fs, path):
            return _blob(url, _info(fs, path))

    def list_page(self, folder: str, token: str | None) -> tuple[list[Blob], str | None]:
        fs, path = self._listable(folder)
        if scheme_of(folder) == "s3":
            return _s3_page(fs, canonical(folder), token)
        try:
            entries = fs.ls(path, detail=True)
        except FileNotFoundError:
            return [], None
        files = [e for e in entries if e["type"] == "file" and e["name"].rstrip("/") != path.rstrip("/")]
        return [_blob(f"{canonical(folder)}/{e['name'].rpartition('/')[2]}", e) for e in files], None

    def glob(self, pattern: str) -> list[Blob]:
        fs, path = self._listable(pattern)
        scheme, _, rest = canonical(pattern).partition("://")
        place = f"{scheme}://{rest.partition('/')[0]}"  # names begin with the bucket, however it is spelled here
        found = fs.glob(path, detail=True).items()
        return [_blob(f"{place}/{name.partition('/')[2]}", e) for name, e in found if e["type"] == "file"]

    def write(self, url: str, data: bytes) -> None:
        fs, path = self._locate(url)
        if "hf" in fs.protocol:
            hub.upload(fs, path, data)
        else:
            with self._patience(url, len(data)) as seconds:
                fs.pipe_file(path, data, timeout=seconds)

    def delete(self, url: str) -> None:
        fs, path = self._locate(url)
        if "hf" in fs.protocol:
            hub.delete(fs, path)
        else:
            fs.rm_file(path)

    def open(self, url: str) -> tuple[Blob, Handle]:
        fs, path = self._locate(url)
        with _explained(fs, path):
            if "hf" in fs.protocol:
                _info(fs, path)
            file = fs.open(path, "rb", cache_type="none")  # s3fs: sends If-Match with each range
        details = fs.info(path) if scheme_of(url) in HTTP_SCHEMES else file.details  # http forgets the ETag
        return _blob(url, details), file

    def create(self, url: str, source: Path) -> None:
        if canonical(url).partition("://")[0] not in CONDITIONAL_SCHEMES:
            raise StoreRefused(f"{redact(url)}: {scheme_of(url)}:// has no create-if-absent")
        self._put(url, source, if_absent=True)

    def put(self, url: str, source: Path) -> None:
        self._put(url, source, if_absent=False)

    def renew(self, url: str) -> None:
        """Forget the credentials that the client of `url` holds, so that it asks its provider chain again."""
        fs, _ = self._locate(url)
        if not hasattr(fs, "connect") or not hasattr(fs, "set_session"):
            return  # the other clients ask their chain for each request
        with _renewing:
            now = time.monotonic()
            if now - _renewed.get(fs, -RENEW_SECONDS) >= RENEW_SECONDS:
                _renewed[fs] = now
                fs.connect(refresh=True)

    def begin(self, url: str) -> str:
        fs, bucket, key = self._s3_key(url)
        return str(fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key)["UploadId"])

    def send_part(self, url: str, upload: str, number: int, data: bytes) -> str:
        fs, bucket, key = self._s3_key(url)
        part = {"Bucket": bucket, "Key": key, "UploadId": upload, "PartNumber": number}
        with self._patience(url, len(data)) as seconds:
            tag = str(fs.call_s3("upload_part", Body=data, **part, timeout=seconds)["ETag"])
        self._moved()
        return tag

    def complete(self, url: str, upload: str, tags: list[str], *, if_absent: bool) -> None:
        fs, bucket, key = self._s3_key(url)
        parts = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, 1)]
        arguments = {"UploadId": upload, "MultipartUpload": {"Parts": parts}, **_condition(if_absent)}
        fs.call_s3("complete_multipart_upload", Bucket=bucket, Key=key, **arguments)

    def abort(self, url: str, upload: str) -> None:
        fs, bucket, key = self._s3_key(url)
        fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload)

    def unfinished(self, url: str) -> list[str]:
        """The uploads to this name that were begun and neither completed nor aborted."""
        fs, bucket, key = self._s3_key(url)
        found = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=key).get("Uploads", [])
        return [str(upload["UploadId"]) for upload in found if upload["Key"] == key]

    def _put(self, url: str, source: Path, *, if_absent: bool) -> None:
        fs, path = self._locate(url)
        if "hf" in fs.protocol:
            hub.upload(fs, path, source)
            return
        with self._patience(url, source.stat().st_size) as seconds:
            if "s3" in fs.protocol:
                bucket, key, _ = fs.split_path(path)
                place = {"Bucket": bucket, "Key": key, **_condition(if_absent)}
                with _Watched(source, self._moved) as body:
                    fs.call_s3("put_object", Body=body, **place, timeout=seconds)
            else:
                mode = "create" if if_absent else "overwrite"
                watch = fsspec.callbacks.Callback(hooks={"moved": lambda *_: self._moved()})
                fs.put_file(str(source), path, mode=mode, callback=watch, timeout=seconds)

    @contextmanager
    def _patience(self, url: str, size: int) -> Iterator[float]:
        """The seconds that an upload of `size` bytes may take: aiohttp notices no server that stops reading."""
        seconds = self._config.stall_seconds + size / SLOWEST_UPLOAD
        try:
            yield seconds
        except fsspec.FSTimeoutError as error:
            raise StorageError(f"{redact(url)}: the store did not take {size:,} bytes in {seconds:.0f} s") from error

    def _s3_key(self, url: str) -> tuple[Any, str, str]:
        fs, path = self._locate(url)
        bucket, key, _ = fs.split_path(path)
        return fs, bucket, key

    def _locate(self, url: str) -> tuple[Any, str]:
        """The client for a URL, one per process and place, and the path by which it knows the object."""
        scheme = canonical(url).partition("://")[0]
        if scheme in HTTP_SCHEMES and not self._config.allow_http:
            raise UsageError(f"{redact(url)}: http(s) is off; set storage.allow_http to read from it")
        quiet_clients()
        wait_for_turn(scheme, self._config.options)
        options = client_options(scheme, self._config)
        try:
            if scheme == "gs":  # gcsfs would look for the version of an object in `#1` at the end of the URL
                fs = fsspec.filesystem(scheme, **options)
                path = canonical(url).removeprefix("gs://")
            else:
                fs, path = fsspec.url_to_fs(canonical(url), **options)
        except ImportError as error:
            raise UsageError(f"{redact(url)}: the client for {scheme}:// is not installed ({error})") from error
        send_once(scheme, fs, self._config)
        quiet_clients()
        return fs, path

    def _listable(self, url: str) -> tuple[Any, str]:
        if scheme_of(url) in HTTP_SCHEMES:
            raise UsageError(f"{redact(url)}: http has no folders and no patterns; name each object, or give an @list")
        return self._locate(url)


class _Watched(io.BufferedReader):
    """A file that calls `moved` when more of it is asked for: what was read before is on its way."""

    def __init__(self, path: Path, moved: Callable[[], object]) -> None:
        super().__init__(io.FileIO(path))
        self._moved = moved

    def read(self, size: int | None = -1, /) -> bytes:
        self._moved()
        return super().read(size)


@contextmanager
def _explained(fs: Any, path: str) -> Iterator[None]:
    """S3's answer to HEAD has no body that tells why it refuses: expired credentials look like any bad request."""
    try:
        yield
    except Exception as error:
        if "s3" in fs.protocol and answer(error)[1] in ("400", "403"):
            bucket, key, _ = fs.split_path(path)
            fs.call_s3("get_object", Bucket=bucket, Key=key, Range="bytes=0-0")  # raises the same with its reason
        raise


def _info(fs: Any, path: str) -> Mapping[str, Any]:
    """What the store tells of one object."""
    return hub.info(fs, path) if "hf" in fs.protocol else dict(fs.info(path))


def _condition(if_absent: bool) -> dict[str, str]:
    return {"IfNoneMatch": "*"} if if_absent else {}


def _s3_page(fs: Any, folder: str, token: str | None) -> tuple[list[Blob], str | None]:
    """One page of at most 1,000 objects directly in `folder`, and where the next one begins."""
    bucket, _, key = folder.removeprefix("s3://").partition("/")
    prefix = f"{key}/" if key else ""
    where = {"Bucket": bucket, "Prefix": prefix, "Delimiter": "/"}
    page = fs.call_s3("list_objects_v2", **where, **({"ContinuationToken": token} if token else {}))
    files = [entry for entry in page.get("Contents", []) if entry["Key"] != prefix]  # not the folder's placeholder
    blobs = [_blob(f"s3://{bucket}/{e['Key']}", {"size": e["Size"], "ETag": e["ETag"]}) for e in files]
    return blobs, page.get("NextContinuationToken")


def _blob(url: str, info: Mapping[str, Any]) -> Blob:
    if info.get("type") == "directory":
        raise IsADirectoryError(redact(url))
    if info.get("size") is None:
        raise StorageError(f"{redact(url)}: the server does not tell how long the object is")
    etag = next((info[name] for name in VERSION_FIELDS if info.get(name)), None)
    return Blob(canonical(url), int(info["size"]), str(etag).strip('"') if etag else None)
