"""The three outcomes of a commit, on local disk and on a real S3 server; and the stores it must refuse."""

import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest

from pipeline.commit import Outcome, commit, probe, publish
from pipeline.errors import (
    AlreadyExists,
    FingerprintMismatch,
    NotAPart,
    NotFound,
    StorageError,
    StoreRefused,
    UsageError,
)
from pipeline.storage import Blob, Forbidden, Storage, StorageConfig, multipart
from pipeline.tokens.schema import ColumnsConfig, Counts, PartFooter, TokenSpec
from pipeline.tokens.writer import OutputConfig, PartWriter
from tests.support.fault_proxy import Fault, Kind, Request, fault_proxy
from tests.support.s3 import S3, rclone
from tests.support.servers import cutting_proxy
from tests.tokens.test_schema import row

RACERS = 16
FOOTER = PartFooter(
    fingerprint="a" * 64,
    shard={"id": "x-1", "url": "s3://in/x.tar", "size": 1, "etag": None},
    spec=TokenSpec(64, 2, 2),
    counts=Counts(3, 3, 3, 0),
)


def make_part(path: Path, footer: PartFooter = FOOTER) -> Path:
    """A real part of three rows."""
    with PartWriter(path, footer.spec, ColumnsConfig(), "s3://in/x.tar", OutputConfig()) as writer:
        writer.add([row(i) for i in range(3)], np.arange(12).reshape(3, 2, 2))
        writer.finish(footer)
    return path


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return make_part(tmp_path / "part")


@pytest.fixture
def url(store_url: str) -> str:
    return f"{store_url}/tokens/x-1.parquet"


class Odd(Storage):
    """A storage whose `create` and `put` go wrong in one way, and that counts what it is asked.

    Attributes:
        written: whether the file is written before the acknowledgement is lost.
        calls: how often each was called.
    """

    def __init__(self, *, written: bool) -> None:
        super().__init__()
        self.written, self.calls = written, Counter[str]()

    def create(self, url: str, source: Path) -> None:
        self.calls["create"] += 1
        if self.written:
            super().create(url, source)
        raise StorageError(f"{url}: connection reset")

    def open_random(self, url: str):
        self.calls["look"] += 1
        return super().open_random(url)


def test_first_commit_wins_and_a_second_one_agrees(url: str, part: Path) -> None:
    storage = Storage()
    assert commit(storage, part, url, FOOTER) is Outcome.DONE
    before = storage.stat(url)
    assert storage.read(url) == part.read_bytes()
    assert commit(storage, part, url, FOOTER) is Outcome.LOST
    assert storage.stat(url) == before, "a committed part was rewritten"


@pytest.mark.parametrize(
    "other",
    [replace(FOOTER, fingerprint="b" * 64), replace(FOOTER, shard={**FOOTER.shard, "id": "y-2"})],
    ids=["fingerprint", "shard"],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_name_taken_by_other_tokens(url: str, part: Path, tmp_path: Path, other: PartFooter, overwrite: bool) -> None:
    storage = Storage()
    storage.put(url, make_part(tmp_path / "other", other))
    with pytest.raises(FingerprintMismatch, match=f"{url} holds tokens of another run"):
        commit(storage, part, url, FOOTER, overwrite=overwrite)
    assert storage.read(url) == (tmp_path / "other").read_bytes()


@pytest.mark.parametrize("content", [b"", b"<html>", b"PAR1" + b"\xff" * 40 + b"PAR1"], ids=["empty", "html", "junk"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_name_taken_by_no_part(url: str, part: Path, content: bytes, overwrite: bool) -> None:
    storage = Storage()
    storage.write(url, content)
    with pytest.raises(NotAPart, match=f"{url}: not a part of Tokenmill .*; move it away") as caught:
        commit(storage, part, url, FOOTER, overwrite=overwrite)
    assert isinstance(caught.value, UsageError)
    assert storage.read(url) == content


def test_name_taken_by_a_damaged_part(url: str, part: Path) -> None:
    data, storage = part.read_bytes(), Storage()
    for cut in (data[:-1], data[: len(data) // 2], data[:-20] + b"\xff" * 12 + data[-8:]):
        storage.write(url, cut)
        with pytest.raises(NotAPart):
            commit(storage, part, url, FOOTER)


def test_lost_acknowledgement_is_looked_at_and_settled(url: str, part: Path) -> None:
    storage = Odd(written=True)
    assert commit(storage, part, url, FOOTER) is Outcome.LOST
    assert storage.calls == {"create": 1, "look": 1}
    assert storage.read(url) == part.read_bytes()


@pytest.mark.system
def test_acknowledgement_cut_on_the_wire(s3: S3, part: Path) -> None:
    url, after = "s3://tests/cut-acknowledgement/x-1.parquet", len("HTTP/1.1 100 Continue\r\n\r\n")
    with cutting_proxy(s3.endpoint, after=after, times=1) as proxy:
        storage = Storage(StorageConfig(options={"endpoint_url": proxy.endpoint}))
        assert commit(storage, part, url, FOOTER) is Outcome.LOST  # to our own object
    assert proxy.cuts == 1
    assert Storage().read(url) == part.read_bytes()


def test_unknown_outcome_with_nothing_there(url: str, part: Path) -> None:
    storage = Odd(written=False)
    with pytest.raises(StorageError, match="connection reset") as caught:
        commit(storage, part, url, FOOTER)
    assert not isinstance(caught.value, NotFound)
    assert storage.calls == {"create": 1, "look": 1}
    assert commit(Storage(), part, url, FOOTER) is Outcome.DONE


def test_unknown_outcome_with_other_tokens_there(url: str, part: Path, tmp_path: Path) -> None:
    Storage().put(url, make_part(tmp_path / "other", replace(FOOTER, fingerprint="b" * 64)))
    with pytest.raises(FingerprintMismatch):
        commit(Odd(written=False), part, url, FOOTER)


def test_winner_that_vanishes_is_a_failure_of_the_store(url: str, part: Path) -> None:
    class Fickle(Storage):
        def create(self, url: str, source: Path) -> None:
            raise AlreadyExists(f"{url} from {source}")

    with pytest.raises(StorageError, match="taken a moment ago, gone now"):
        commit(Fickle(), part, url, FOOTER)


def test_race_of_attempts_on_local_disk(part: Path, tmp_path: Path) -> None:
    start, url = Barrier(RACERS), f"{tmp_path}/tokens/x-1.parquet"

    def attempt(_: int) -> Outcome:
        start.wait(60)
        return commit(Storage(), part, url, FOOTER)

    with ThreadPoolExecutor(RACERS) as pool:
        outcomes = Counter(pool.map(attempt, range(RACERS)))
    assert outcomes == {Outcome.DONE: 1, Outcome.LOST: RACERS - 1}
    assert [path.name for path in (tmp_path / "tokens").iterdir()] == ["x-1.parquet"]


def test_overwrite_looks_first_then_puts(url: str, part: Path) -> None:
    storage = Storage()
    assert commit(storage, part, url, FOOTER, overwrite=True) is Outcome.DONE
    before = storage.stat(url)
    assert commit(storage, part, url, FOOTER, overwrite=True) is Outcome.LOST
    assert storage.stat(url) == before
    with pytest.raises(AlreadyExists):
        publish(storage, part, url, overwrite=True)


# --- the probe --------------------------------------------------------------------------------------------------------


def test_probe_of_a_store_that_keeps_its_word(store_url: str) -> None:
    probe(Storage(), f"{store_url}/out")
    assert Storage().glob(f"{store_url}/**") == []


def test_probe_that_may_not_write(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(UsageError, match="is no folder"):
        probe(Storage(), f"{tmp_path}/out")


def test_probe_of_a_store_without_conditions() -> None:
    with pytest.raises(
        StoreRefused, match=r"no create-if-absent; use a store with conditional writes .* or set output"
    ):
        probe(Storage(), "hf://datasets/nobody/nothing")


@pytest.mark.system
@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize("fault", [Fault.LOST, Fault.STALL, Fault.INTERNAL])
def test_probe_through_faults(s3: S3, fault: Fault, in_parts: bool) -> None:
    """A lost acknowledgement of the first create makes its repetition meet its own object."""
    left = [1, 1]  # the first PUT, and the first POST

    def plan(request: Request) -> Fault | None:
        return fault if request.kind in (Kind.PUT, Kind.POST) and left and left.pop() else None

    with fault_proxy(s3.endpoint, plan) as proxy:
        options = {"endpoint_url": proxy.endpoint}
        storage = Storage(StorageConfig(options=options, stall_seconds=0.5))
        probe(storage, "s3://tests/probed", in_parts=in_parts)
    assert proxy.faults == {fault: 2}
    assert Storage().list_folder("s3://tests/probed") == []


def test_probe_by_one_who_may_not_delete(store_url: str) -> None:
    class CreateOnly(Storage):
        def delete(self, url: str) -> None:
            raise Forbidden(f"{url}: permission denied")

    probe(CreateOnly(), f"{store_url}/out")
    assert len(Storage().list_folder(f"{store_url}/out")) == 1


class PutOnly(Storage):
    """A store that keeps the condition on a PUT, and not on the completion of an upload in parts (Ceph 16)."""

    def create_in_parts(self, url: str, source: Path) -> None:
        self.put(url, source)


@pytest.mark.system
def test_store_that_keeps_the_condition_on_a_put_only(s3: S3, part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, url = PutOnly(), f"s3://tests/put-only-{uuid.uuid4().hex}/x-1.parquet"
    probe(storage, url.rpartition("/")[0])
    with pytest.raises(StoreRefused, match="completes a multipart upload over an object"):
        probe(storage, url.rpartition("/")[0], in_parts=True)
    assert commit(storage, part, url, FOOTER) is Outcome.DONE, "small parts go in one PUT"
    monkeypatch.setattr(multipart, "ONE_PUT_BYTES", 100)
    with pytest.raises(StoreRefused, match="multipart"):
        commit(storage, part, f"{url}.large", FOOTER)
    assert [blob.url for blob in storage.list_folder(url.rpartition("/")[0])] == [url]


@pytest.mark.system
def test_store_that_overwrites_silently(part: Path, tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    with rclone(tmp_path / "server") as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        storage = Storage(StorageConfig(options={"endpoint_url": server.endpoint}))
        out = server.make_bucket("out")
        with pytest.raises(StoreRefused, match=r"s3://out: the store replaced an object .*allow_overwrite_commit"):
            probe(storage, out)
        assert storage.list_folder(out) == []
        url = f"{out}/tokens/x-1.parquet"
        outcomes = [commit(storage, part, url, FOOTER, overwrite=True) for _ in range(2)]
        assert outcomes == [Outcome.DONE, Outcome.LOST]
        assert storage.list_folder(f"{out}/tokens") == [Blob(url, part.stat().st_size, storage.stat(url).etag)]
