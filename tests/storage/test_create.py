"""Create-if-absent: one winner, whole files, nothing left over."""

import errno
import os
from pathlib import Path

import pytest

from pipeline.errors import AlreadyExists, StorageError, StoreRefused, UsageError
from pipeline.storage import Storage, StorageConfig
from tests.support.s3 import S3


def source(tmp_path: Path, name: str, data: bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


def everything_in(storage: Storage, folder: str) -> list[str]:
    """Names of all that lies in a folder, temporary files too."""
    return [blob.url.rpartition("/")[2] for blob in storage.list_folder(folder)]


def test_create_and_create_again(store_url: str, tmp_path: Path) -> None:
    storage, url = Storage(), f"{store_url}/tokens/a.parquet"
    storage.create(url, source(tmp_path, "first", b"first"))
    with pytest.raises(AlreadyExists, match=url):
        storage.create(url, source(tmp_path, "second", b"second"))
    assert storage.read(url) == b"first"
    assert everything_in(storage, f"{store_url}/tokens") == ["a.parquet"]


def test_put_replaces(store_url: str, tmp_path: Path) -> None:
    storage, url = Storage(), f"{store_url}/tokens/a.parquet"
    for data in (b"first", b"second"):
        storage.put(url, source(tmp_path, "file", data))
        assert storage.read(url) == data
    assert everything_in(storage, f"{store_url}/tokens") == ["a.parquet"]


@pytest.mark.system
def test_large_part_goes_in_one_conditional_put(s3: S3, tmp_path: Path) -> None:
    storage, url = Storage(), "s3://tests/large/a.parquet"
    file = source(tmp_path, "large", os.urandom(1 << 20) * 110)  # s3fs alone would use a multipart upload
    storage.create(url, file)
    assert "-" not in str(storage.stat(url).etag), "the ETag of a multipart upload"
    with pytest.raises(AlreadyExists):
        storage.create(url, file)
    assert not s3.client().call_s3("list_multipart_uploads", Bucket="tests").get("Uploads")


def test_failed_create_leaves_nothing(store_url: str, tmp_path: Path) -> None:
    storage = Storage(StorageConfig(retry_seconds=0))
    storage.write(f"{store_url}/tokens/other", b"")
    with pytest.raises(StorageError):
        storage.create(f"{store_url}/tokens/a.parquet", tmp_path / "missing")
    assert everything_in(storage, f"{store_url}/tokens") == ["other"]


def test_disk_that_is_full_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = source(tmp_path, "file", b"x")
    monkeypatch.setattr(os, "fsync", no_space)
    for publish in (Storage().create, Storage().put, lambda url, file: Storage().write(url, file.read_bytes())):
        with pytest.raises(StorageError, match="No space left"):
            publish(f"{tmp_path}/tokens/a.parquet", file)
        assert list(tmp_path.glob("tokens/*")) == []


def test_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_here(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")  # what exFAT and some FUSE mounts answer

    monkeypatch.setattr(os, "link", not_here)
    with pytest.raises(StoreRefused, match="no hard links"):
        Storage().create(f"{tmp_path}/tokens/a.parquet", source(tmp_path, "file", b"x"))
    assert list(tmp_path.glob("tokens/*")) == []


def test_output_that_is_a_file(tmp_path: Path) -> None:
    file = source(tmp_path, "output", b"x")
    for publish in (Storage().create, Storage().put, lambda url, file: Storage().write(url, file.read_bytes())):
        with pytest.raises(UsageError, match="output: is no folder"):
            publish(f"{file}/a.parquet", file)


def test_store_without_conditional_writes(tmp_path: Path) -> None:
    with pytest.raises(StoreRefused, match="hf:// has no create-if-absent"):
        Storage().create("hf://datasets/nobody/nothing/a.parquet", source(tmp_path, "file", b"x"))
