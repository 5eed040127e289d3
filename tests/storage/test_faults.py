"""Each fault on each kind of request, once: the storage gets over it, and what it reads and leaves is right."""

import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from threading import Event, Thread

import pytest

from pipeline.errors import AlreadyExists, ShardError, ShardFault, StorageError
from pipeline.storage import ByteStream, Storage, StorageConfig, multipart, reading
from tests.storage.test_streams import content, drain
from tests.support.fault_proxy import POSSIBLE, Fault, FaultProxy, Kind, Request, fault_proxy
from tests.support.s3 import S3

pytestmark = pytest.mark.system

DATA = content(5000)
CASES = [(kind, fault) for kind, faults in POSSIBLE.items() for fault in faults if kind is not Kind.GET]


class Once:
    """A plan: the first `times` requests of a kind are struck."""

    def __init__(self, kind: Kind, fault: Fault, times: int = 1) -> None:
        self.kind, self.fault, self.left = kind, fault, times

    def __call__(self, request: Request) -> Fault | None:
        if request.kind is not self.kind or not self.left:
            return None
        self.left -= 1
        return self.fault


def through(proxy: FaultProxy, **settings: float) -> Storage:
    options = {"endpoint_url": proxy.endpoint}
    return Storage(StorageConfig(options=options, **{"stall_seconds": 0.5, "retry_seconds": 20, **settings}))


def stream(storage: Storage, url: str, tmp_path: Path) -> None:
    with storage.stream(Storage().stat(url)) as source:
        assert drain(source) == DATA


def read(storage: Storage, url: str, tmp_path: Path) -> None:
    assert storage.read(url) == DATA
    with storage.open_random(url) as file:
        assert file.read() == DATA


def list_folder(storage: Storage, url: str, tmp_path: Path) -> None:
    folder = url.rpartition("/")[0]
    assert [blob.size for blob in storage.list_folder(folder)] == [len(DATA)]
    assert [blob.url for blob in storage.glob(f"{folder}/*.t?r")] == [url]


def write(storage: Storage, url: str, tmp_path: Path) -> None:
    storage.write(url, DATA[::-1])
    assert storage.read(url) == DATA[::-1]


def delete(storage: Storage, url: str, tmp_path: Path) -> None:
    storage.delete(url)
    assert not storage.exists(url)


def create_in_parts(storage: Storage, url: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA)
    with suppress(AlreadyExists, StorageError):  # an answer was lost, so the outcome is unknown: look
        storage.create_in_parts(f"{url}.new", tmp_path / "file")
    assert storage.read(f"{url}.new") == DATA


DEEDS: dict[Kind, list[Callable]] = {
    Kind.RANGE: [stream, read],
    Kind.HEAD: [stream, read],
    Kind.LIST: [list_folder],
    Kind.PUT: [write],
    Kind.POST: [create_in_parts],
    Kind.DELETE: [delete],
}
STRIKES = [(deed, kind, fault) for kind, fault in CASES for deed in DEEDS[kind]]


@pytest.fixture
def url(s3: S3) -> str:
    url = f"s3://tests/{uuid.uuid4().hex}/a.tar"
    Storage().write(url, DATA)
    return url


@pytest.mark.parametrize(("deed", "kind", "fault"), STRIKES)
def test_fault(s3: S3, url: str, tmp_path: Path, deed: Callable, kind: Kind, fault: Fault) -> None:
    with fault_proxy(s3.endpoint, Once(kind, fault)) as proxy:
        deed(through(proxy), url, tmp_path)
    assert proxy.faults == {fault: 1}
    assert proxy.struck == {kind: 1}


@pytest.mark.parametrize("fault", [Fault.CUT, Fault.STALL, Fault.SHORT, Fault.LOST, Fault.RESET])
def test_stream_goes_on_at_its_offset(s3: S3, monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    monkeypatch.setattr(reading, "BLOCK_BYTES", 1000)
    url, data = f"s3://tests/{uuid.uuid4().hex}", content(20_500)
    Storage().write(url, data)
    blob = Storage().stat(url)
    with fault_proxy(s3.endpoint, Once(Kind.RANGE, fault, times=8)) as proxy, through(proxy).stream(blob) as source:
        assert drain(source) == data
    assert proxy.faults == {fault: 8}
    assert proxy.requests[Kind.RANGE] == 21 + 8, "only what was broken is asked for again"


def test_version_that_stays_another(s3: S3, url: str) -> None:
    blob = Storage().stat(url)
    with (
        fault_proxy(s3.endpoint, Once(Kind.HEAD, Fault.VERSION, times=100)) as proxy,
        pytest.raises(ShardError, match="not the one frozen") as caught,
        through(proxy).stream(blob),
    ):
        pytest.fail("the stream was opened")
    assert caught.value.reason is ShardFault.CHANGED
    assert proxy.faults[Fault.VERSION] == 2, "a change is looked at twice, no more"


def test_silence_in_the_middle_of_a_body_is_cut_in_time(s3: S3, url: str) -> None:
    blob, start = Storage().stat(url), time.monotonic()
    with (
        fault_proxy(s3.endpoint, Once(Kind.RANGE, Fault.STALL, times=100)) as proxy,
        pytest.raises(StorageError, match="imeout"),
        through(proxy, stall_seconds=0.5, retry_seconds=2).stream(blob) as source,
    ):
        drain(source)
    assert proxy.faults[Fault.STALL] >= 2
    assert time.monotonic() - start < 6


def test_deadline_of_a_request(s3: S3, url: str) -> None:
    start = time.monotonic()
    with fault_proxy(s3.endpoint, Once(Kind.HEAD, Fault.INTERNAL, 1000)) as proxy, pytest.raises(StorageError):
        through(proxy, retry_seconds=1.5).stat(url)
    assert proxy.faults[Fault.INTERNAL] >= 2
    assert time.monotonic() - start < 3


class EverySecond:
    """A plan: each range fails when it is asked for the first time, and never again."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def __call__(self, request: Request) -> Fault | None:
        span = request.headers.get("Range", "")
        if request.kind is not Kind.RANGE or span in self._seen:
            return None
        self._seen.add(span)
        return Fault.INTERNAL


@pytest.mark.parametrize(("blocks", "ends"), [(8, nullcontext()), (800, pytest.raises(StorageError, match="s3://"))])
def test_deadline_of_a_shard(
    s3: S3, monkeypatch: pytest.MonkeyPatch, blocks: int, ends: AbstractContextManager
) -> None:
    """Every request works at its second attempt, and yet a store that limps so is not put up with for ever."""
    monkeypatch.setattr(reading, "BLOCK_BYTES", 100)
    url, received, start = f"s3://tests/{uuid.uuid4().hex}", bytearray(), time.monotonic()
    Storage().write(url, content(100 * blocks))
    blob = Storage().stat(url)
    with fault_proxy(s3.endpoint, EverySecond()) as proxy, ends, through(proxy, retry_seconds=8).stream(blob) as source:
        while block := source.read(100):
            received += block
    assert received == content(100 * blocks)[: len(received)]
    assert (len(received) == 100 * blocks) is (blocks == 8)
    assert proxy.faults[Fault.INTERNAL] >= min(blocks, 20), "far more than one request came through"
    assert time.monotonic() - start < 13


def test_reader_that_leaves_while_a_request_is_tried_again(s3: S3, url: str) -> None:
    blob, failed = Storage().stat(url), Event()
    with fault_proxy(s3.endpoint, Once(Kind.RANGE, Fault.INTERNAL, 1000)) as proxy:

        def read_one(source: ByteStream) -> None:
            with pytest.raises(StorageError):
                source.read(1)

        def leave_after_the_first_failure() -> None:
            with through(proxy, retry_seconds=300).stream(blob) as source:
                Thread(target=read_one, args=(source,)).start()
                while not proxy.faults:
                    failed.wait(0.01)

        start = time.monotonic()
        leave_after_the_first_failure()
    assert proxy.faults[Fault.INTERNAL] >= 1
    assert time.monotonic() - start < 20, "waited for the 300 seconds of retries"


# --- uploads in parts -------------------------------------------------------------------------------------------------


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multipart, "ONE_PUT_BYTES", 6 << 20)
    monkeypatch.setattr(multipart, "PART_BYTES", 5 << 20)


def uploads(s3: S3) -> list:
    return s3.client().call_s3("list_multipart_uploads", Bucket="tests").get("Uploads", [])


@pytest.fixture
def large(tmp_path: Path) -> Path:
    (tmp_path / "large").write_bytes(content(1 << 16) * 180)
    return tmp_path / "large"


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("fault", POSSIBLE[Kind.PUT])
def test_large_file_through_faults(s3: S3, large: Path, fault: Fault) -> None:
    url = f"s3://tests/{uuid.uuid4().hex}"
    with fault_proxy(s3.endpoint, Once(Kind.PUT, fault)) as proxy:
        through(proxy, stall_seconds=3).create(url, large)
    assert proxy.faults == {fault: 1}
    assert proxy.requests[Kind.PUT] == 4, "three parts, one of them twice"
    assert Storage().read(url) == large.read_bytes()
    assert uploads(s3) == []


@pytest.mark.usefixtures("small_parts")
def test_large_file_meets_another(s3: S3, large: Path) -> None:
    url = f"s3://tests/{uuid.uuid4().hex}"
    Storage().write(url, b"first")
    with pytest.raises(AlreadyExists):
        Storage().create(url, large)
    assert Storage().read(url) == b"first"
    assert uploads(s3) == []


@pytest.mark.usefixtures("small_parts")
def test_large_file_that_cannot_be_sent_leaves_nothing(s3: S3, large: Path) -> None:
    url = f"s3://tests/{uuid.uuid4().hex}"
    with fault_proxy(s3.endpoint, Once(Kind.PUT, Fault.INTERNAL, 1000)) as proxy, pytest.raises(StorageError):
        through(proxy, retry_seconds=1).create(url, large)
    assert proxy.faults[Fault.INTERNAL] > 1
    assert proxy.requests[Kind.DELETE] == 1, "aborted"
    assert not Storage().exists(url)
    assert uploads(s3) == []
