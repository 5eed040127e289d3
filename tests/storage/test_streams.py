"""A shard as a stream: every byte of one version of the object, in order, within a budget."""

import io
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from threading import Barrier

import pytest

from pipeline.errors import ShardError, ShardFault, StorageError
from pipeline.shards.manifest import freeze
from pipeline.storage import Blob, ByteStream, Storage, StorageConfig, reading
from tests.support.s3 import S3, web
from tests.support.servers import cutting_proxy

BLOCK = 1000  # bytes; the tests that need many blocks make them small


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BLOCK_BYTES", BLOCK)


def content(size: int, seed: int = 0) -> bytes:
    """Bytes that are nowhere like a block further on."""
    return bytes((i * i + i // 251 + seed) % 256 for i in range(size))


def stored(storage: Storage, url: str, data: bytes) -> Blob:
    storage.write(url, data)
    return storage.stat(url)


def drain(stream: ByteStream, chunk: int = 1 << 20) -> bytes:
    return b"".join(iter(lambda: stream.read(chunk), b""))


def fetching_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("fetch")]


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK, 17 * BLOCK + 3])
@pytest.mark.usefixtures("small_blocks")
def test_sizes_around_the_block(store_url: str, size: int) -> None:
    storage = Storage()
    blob = stored(storage, f"{store_url}/a.tar", content(size))
    for chunk in (7, BLOCK, 10 * BLOCK):
        with storage.stream(blob) as stream:
            assert drain(stream, chunk) == content(size)
            assert stream.read(1) == b""
    assert fetching_threads() == []


def test_blocks_of_real_size(store_url: str) -> None:
    storage, data = Storage(), content(1 << 16) * 321
    blob = stored(storage, f"{store_url}/a.tar", data)
    assert len(data) > 2 * reading.BLOCK_BYTES
    with storage.stream(blob) as stream:
        assert drain(stream) == data


def replaced_by_other_size(storage: Storage, url: str) -> None:
    storage.write(url, content(20 * BLOCK - 1))


def replaced_by_same_size(storage: Storage, url: str) -> None:
    storage.write(url, content(20 * BLOCK, seed=1))


def deleted(storage: Storage, url: str) -> None:
    storage.delete(url)


CHANGES = [(replaced_by_other_size, "changed"), (replaced_by_same_size, "changed"), (deleted, "missing")]


@pytest.mark.parametrize(("change", "reason"), CHANGES)
def test_object_changed_before_the_stream(store_url: str, change: Callable, reason: str) -> None:
    storage, url = Storage(), f"{store_url}/a.tar"
    blob = stored(storage, url, content(20 * BLOCK))
    change(storage, url)
    with pytest.raises(ShardError, match=url) as caught, storage.stream(blob):
        pytest.fail("the stream was opened")
    assert caught.value.reason == ShardFault(reason)


@pytest.mark.parametrize(("change", "reason"), CHANGES)
@pytest.mark.usefixtures("small_blocks")
def test_object_changed_during_the_stream(store_url: str, change: Callable, reason: str) -> None:
    storage, url = Storage(), f"{store_url}/a.tar"
    blob, seen = stored(storage, url, content(20 * BLOCK)), bytearray()

    def read_while_it_changes() -> None:
        with storage.stream(blob) as stream:
            seen.extend(stream.read(BLOCK))
            change(storage, url)
            while data := stream.read(BLOCK):
                seen.extend(data)

    with pytest.raises(ShardError, match=url) as caught:
        read_while_it_changes()
    assert caught.value.reason in (ShardFault(reason), ShardFault.CHANGED)  # what goes on reading may see either
    assert content(20 * BLOCK).startswith(bytes(seen)), "bytes of another version came through"
    assert fetching_threads() == []


def test_object_that_was_never_there(store_url: str) -> None:
    with pytest.raises(ShardError) as caught, Storage().stream(Blob(f"{store_url}/a.tar", 1, None)):
        pass
    assert caught.value.reason is ShardFault.MISSING


def test_object_frozen_without_etag(store_url: str) -> None:
    storage, url = Storage(), f"{store_url}/a.tar"
    storage.write(url, b"12345")
    with storage.stream(Blob(url, 5, None)) as stream:
        assert drain(stream) == b"12345"


def test_exception_of_the_reader_goes_through(store_url: str) -> None:
    storage = Storage()
    blob = stored(storage, f"{store_url}/a.tar", b"12345")
    with pytest.raises(ZeroDivisionError), storage.stream(blob):
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), storage.open_random(blob.url):
        raise ZeroDivisionError


def test_reader_that_stops_early(store_url: str) -> None:
    storage = Storage()
    blob = stored(storage, f"{store_url}/a.tar", content(1 << 16) * 160)
    with storage.stream(blob) as stream:
        stream.read(1)
    assert fetching_threads() == []


@pytest.mark.usefixtures("small_blocks")
def test_reader_that_stops_early_ends_the_retries(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def only_the_first(version: reading.Version, offset: int, size: int) -> bytes:
        if offset:
            raise StorageError("away")
        return read(version, offset, size)

    storage, read = Storage(StorageConfig(retry_seconds=30)), reading.Version.read
    blob = stored(storage, f"{store_url}/a.tar", content(20 * BLOCK))
    monkeypatch.setattr(reading.Version, "read", only_the_first)
    start = time.monotonic()
    with storage.stream(blob) as stream:
        assert stream.read(BLOCK) == content(BLOCK)
    assert time.monotonic() - start < 10
    assert fetching_threads() == []


def test_answer_that_is_well_formed_but_short() -> None:
    bodies = [content(50), content(99), content(100)]
    version = reading.Version(lambda: (Blob("s3://b/a", 100, "e"), io.BytesIO(bodies[0])))
    for _ in range(2):
        with pytest.raises(StorageError, match="of 100 bytes at offset 0: the body was cut"):
            version.read(0, 100)
        bodies.pop(0)
    assert version.read(0, 100) == content(100)
    version.close()


# --- the read-ahead alone ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks_read", [1, 2, 7])
def test_slow_reader_is_not_outrun(blocks_read: int) -> None:
    offsets: list[int] = []
    ahead = reading.ReadAhead(lambda offset, size: offsets.append(offset) or bytes(size), 100 * reading.BLOCK_BYTES)
    for _ in range(blocks_read):
        ahead.read(reading.BLOCK_BYTES)
    ahead.close()  # waits for what is in flight
    assert blocks_read <= len(offsets) <= blocks_read + reading.BLOCKS_AHEAD


def test_blocks_ahead_are_fetched_at_the_same_time() -> None:
    together = Barrier(reading.BLOCKS_AHEAD)

    def fetch(offset: int, size: int) -> bytes:
        together.wait(30)  # breaks if fewer requests than that are ever in flight
        return bytes(size)

    ahead = reading.ReadAhead(fetch, 2 * reading.BLOCKS_AHEAD * reading.BLOCK_BYTES)
    assert len(drain(ahead, reading.BLOCK_BYTES)) == 2 * reading.BLOCKS_AHEAD * reading.BLOCK_BYTES
    ahead.close()


def test_failed_block_is_never_passed_over() -> None:
    def fetch(offset: int, size: int) -> bytes:
        if offset == reading.BLOCK_BYTES:
            raise StorageError("the second block")
        return bytes(size)

    ahead = reading.ReadAhead(fetch, 5 * reading.BLOCK_BYTES)
    assert ahead.read(reading.BLOCK_BYTES) == bytes(reading.BLOCK_BYTES)
    for _ in range(3):
        with pytest.raises(StorageError, match="the second block"):
            ahead.read(1)
    ahead.close()


# --- a bad network ----------------------------------------------------------------------------------------------------


@pytest.mark.system
def test_cut_bodies_are_resumed_at_their_offset(s3: S3) -> None:
    data = content(1 << 16) * 321
    blob = stored(Storage(), "s3://tests/cut/a.tar", data)
    with cutting_proxy(s3.endpoint, after=3 << 20, times=6) as proxy:
        storage = Storage(StorageConfig(options={"endpoint_url": proxy.endpoint}, retry_seconds=30))
        with storage.stream(blob) as stream:
            assert drain(stream) == data
        with storage.open_random(blob.url) as file:
            assert file.read() == data
    assert proxy.cuts == 6


@pytest.mark.system
def test_object_of_a_web_server(tmp_path: Path) -> None:
    data, files = content(1 << 16) * 321, tmp_path / "files"
    blob = stored(Storage(), f"{files}/a.tar", data)
    with web(tmp_path, files) as endpoint:
        storage = Storage(StorageConfig(allow_http=True, allow_private_hosts=True))
        shard, missing = freeze(storage, [f"{endpoint}/{{a,b}}.tar"])
        assert (shard.size, missing.size) == (blob.size, None)
        with storage.stream(shard.blob()) as stream:
            assert drain(stream) == data
        storage.write(blob.url, bytes(len(data)))
        os.utime(files / "a.tar", (0, 0))
        with pytest.raises(ShardError, match="not the one frozen"), storage.stream(shard.blob()):
            pytest.fail("the stream was opened")


@pytest.mark.system
def test_store_that_goes_away_for_good(s3: S3, tmp_path: Path) -> None:
    blob = stored(Storage(), "s3://tests/gone/a.tar", content(1 << 16) * 321)
    with cutting_proxy(s3.endpoint, after=1 << 20, times=1000) as proxy:
        storage = Storage(StorageConfig(options={"endpoint_url": proxy.endpoint}, retry_seconds=0.5))
        with pytest.raises(StorageError, match=blob.url), storage.stream(blob) as stream:
            drain(stream)
    assert proxy.cuts > 1
    assert fetching_threads() == []
