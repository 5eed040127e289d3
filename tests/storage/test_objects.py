"""What `Storage` says and does about whole objects, on local disk and on a real S3 server."""

import os
import pickle
from pathlib import Path

import pytest

from pipeline.errors import NotFound, UsageError
from pipeline.storage import Storage, StorageConfig


def names(blobs: list) -> list[str]:
    return [blob.url.rpartition("/")[2] for blob in blobs]


def test_stat_of_an_object(store_url: str) -> None:
    storage, url = Storage(), f"{store_url}/a.tar"
    storage.write(url, b"12345")
    before = storage.stat(url)
    assert (before.url, before.size) == (url, 5)
    assert before.etag
    assert storage.stat(url) == before == storage.list_folder(store_url)[0]
    storage.write(url, b"54321")
    assert storage.stat(url).etag != before.etag


@pytest.mark.parametrize("name", ["missing", "folder", "folder/", "folder/a.tar/below"])
def test_stat_of_no_object(store_url: str, name: str) -> None:
    storage = Storage()
    storage.write(f"{store_url}/folder/a.tar", b"")
    with pytest.raises(NotFound, match="not found"):
        storage.stat(f"{store_url}/{name}")
    assert not storage.exists(f"{store_url}/{name}")


def test_read_of_a_missing_object(store_url: str) -> None:
    with pytest.raises(NotFound, match=f"{store_url}/missing"):
        Storage().read(f"{store_url}/missing")


def test_list_holds_only_the_files_of_the_folder_itself(store_url: str) -> None:
    storage = Storage()
    for name in ("t/b.parquet", "t/a.parquet", "t/a.txt", "t/below/c.parquet", "t2/d.parquet", "t.parquet"):
        storage.write(f"{store_url}/{name}", b"")
    assert names(storage.list_folder(f"{store_url}/t", ".parquet")) == ["a.parquet", "b.parquet"]
    assert names(storage.list_folder(f"{store_url}/t/")) == ["a.parquet", "a.txt", "b.parquet"]


@pytest.mark.parametrize("folder", ["missing", "missing/", "a.txt", "a.txt/"])
def test_list_of_no_folder(store_url: str, folder: str) -> None:
    storage = Storage()
    storage.write(f"{store_url}/a.txt", b"")
    assert storage.list_folder(f"{store_url}/{folder}") == []


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.tar", ["0.tar", "1.tar"]),
        ("[1-9].tar", ["1.tar"]),
        ("?.t*", ["0.tar", "0.txt", "1.tar"]),
        ("*/2.tar", ["below/2.tar"]),
        ("**/*.tar", ["0.tar", "1.tar", "below/2.tar", "below/deep/3.tar"]),
        ("missing/*", []),
        ("bel*", []),  # a folder is no object
    ],
)
def test_glob(store_url: str, pattern: str, expected: list[str]) -> None:
    storage = Storage()
    for name in ("0.tar", "1.tar", "0.txt", "below/2.tar", "below/deep/3.tar"):
        storage.write(f"{store_url}/{name}", b"x")
    assert [blob.url.removeprefix(f"{store_url}/") for blob in storage.glob(f"{store_url}/{pattern}")] == expected


def test_write_replaces_and_delete_is_idempotent(store_url: str) -> None:
    storage, url = Storage(), f"{store_url}/folder/summary.json"
    storage.write(url, b"one, and longer")
    storage.write(url, b"two")
    assert storage.read(url) == b"two"
    assert names(storage.list_folder(f"{store_url}/folder")) == ["summary.json"]
    storage.delete(url)
    storage.delete(url)
    assert storage.list_folder(f"{store_url}/folder") == []


def test_random_file(store_url: str) -> None:
    storage, url, data = Storage(), f"{store_url}/a", bytes(range(200))
    storage.write(url, data)
    with storage.open_random(url) as file:
        assert (file.seek(-10, os.SEEK_END), file.read(100)) == (190, data[190:])
        assert (file.seek(5), file.read(3), file.seek(2, os.SEEK_CUR), file.tell()) == (5, data[5:8], 10, 10)
        assert (file.read(), file.read(1), file.seek(500), file.read(1)) == (data[10:], b"", 500, b"")
    with pytest.raises(NotFound), storage.open_random(f"{store_url}/missing"):
        pass


def test_files_get_the_permissions_of_the_user(tmp_path: Path) -> None:
    previous = os.umask(0o027)
    try:
        (tmp_path / "source").write_bytes(b"x")
        Storage().write(f"{tmp_path}/written", b"x")
        Storage().create(f"{tmp_path}/created", tmp_path / "source")
    finally:
        os.umask(previous)
    assert [oct((tmp_path / name).stat().st_mode & 0o777) for name in ("written", "created")] == ["0o640", "0o640"]


@pytest.mark.parametrize("find", [Storage.list_folder, Storage.glob], ids=["folder", "pattern"])
def test_link_that_leads_nowhere_is_not_passed_over(tmp_path: Path, find) -> None:
    (tmp_path / "a.tar").symlink_to(tmp_path / "gone.tar")
    with pytest.raises(NotFound):
        find(Storage(), f"{tmp_path}/*" if find is Storage.glob else str(tmp_path))


def test_linked_file_has_the_size_and_time_of_its_target(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"12345")
    (tmp_path / "a.tar").symlink_to(tmp_path / "real")
    (linked,) = Storage().list_folder(str(tmp_path), ".tar")
    assert (linked.size, linked.etag) == (5, Storage().stat(f"{tmp_path}/real").etag)


def test_localized_folder(store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", f"{tmp_path}/cache")
    storage = Storage()
    for name in ("config.json", "a.safetensors", "readme.txt"):
        storage.write(f"{store_url}/model/{name}", name.encode())
    first = storage.localize(f"{store_url}/model", (".json", ".safetensors"))
    assert {"config.json", "a.safetensors"} <= {path.name for path in first.iterdir()}
    assert (first / "config.json").read_bytes() == b"config.json"
    assert storage.localize(f"{store_url}/model", (".json", ".safetensors")) == first
    storage.write(f"{store_url}/model/config.json", b"other")
    now = storage.localize(f"{store_url}/model", (".json", ".safetensors"))
    assert (now / "config.json").read_bytes() == b"other"
    assert len(list(tmp_path.glob("cache/tokenmill/*"))) == (0 if now == first else 2)
    assert not storage.localize(f"{store_url}/nothing").exists()


def test_storage_travels_to_other_processes() -> None:
    storage = Storage(StorageConfig(options={"anon": True}, stall_seconds=3))
    assert pickle.loads(pickle.dumps(storage)).config == storage.config


@pytest.mark.parametrize(
    "options",
    [
        {"key": "AKIA-CANARY"},
        {"secret": "CANARY"},
        {"client_kwargs": {"aws_session_token": "CANARY"}},
        {"token": "CANARY"},
        {"client_kwargs": {"headers": {"Authorization": "Bearer CANARY"}}},
        {"s3_additional_kwargs": {"SSECustomerKey": "CANARY"}},
        {"client_kwargs": {"headers": {"X-Api-Key": "CANARY"}}},
        {"shared_access_key": "CANARY"},
        {"hosts": [{"password": "CANARY"}]},
        {"username": "CANARY"},
        {"connection_string": "CANARY"},
        {"endpoint_url": "https://user:CANARY@store.example"},
        {"endpoint_url": "https://CANARY@store.example"},
    ],
)
def test_options_with_a_credential(options: dict) -> None:
    with pytest.raises(ValueError, match="must not hold credentials, got") as caught:
        StorageConfig(options=options)
    assert "CANARY" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"token": "anon"},
        {"token": False},
        {"anon": True},
        {"endpoint_url": "https://store.example/a@b"},
        {"s3_additional_kwargs": {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "arn:aws:kms:1"}},
        {"config_kwargs": {"tcp_keepalive": True}},
    ],
)
def test_options_without_a_credential(options: dict) -> None:
    assert StorageConfig(options=options).options == options


def test_http_is_by_opt_in_and_has_no_folders() -> None:
    with pytest.raises(UsageError, match=r"http\(s\) is off; set storage\.allow_http"):
        Storage().stat("https://store.example/a.tar")
    allowed = Storage(StorageConfig(allow_http=True))
    for search in (allowed.list_folder, allowed.glob):
        with pytest.raises(UsageError, match="http has no folders and no patterns"):
            search("https://store.example/*.tar")
