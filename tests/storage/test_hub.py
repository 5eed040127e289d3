"""`hf://`: data sets of the Hugging Face Hub are read as any store is; nothing is committed there."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.commit import probe
from pipeline.errors import NotFound, ShardError, ShardFault, StoreRefused
from pipeline.model import VQModel
from pipeline.shards.manifest import freeze
from pipeline.storage import Storage, StorageConfig, reading
from tests.storage.test_streams import content, drain
from tests.support.fault_proxy import Fault, Request, fault_proxy
from tests.support.hub import REPO, Hub, hub

URL = f"hf://datasets/{REPO}"


@pytest.fixture
def here() -> Iterator[Hub]:
    with hub() as running:
        yield running


@pytest.fixture
def storage(here: Hub) -> Storage:
    return Storage(StorageConfig(options={"endpoint": here.endpoint, "token": False}, retry_seconds=5))


def test_shards_of_a_data_set(here: Hub, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BLOCK_BYTES", 1000)
    here.files |= {"in/a.tar": content(5500), "in/b c.tar": content(100, 1), "in/below/c.tar": b"x", "readme.md": b"x"}
    blobs = storage.list_folder(f"{URL}/in", ".tar")
    assert [blob.url for blob in blobs] == [f"{URL}/in/a.tar", f"{URL}/in/b c.tar"]
    assert blobs == storage.glob(f"{URL}/in/*.tar") == [storage.stat(blob.url) for blob in blobs]
    assert all(blob.etag for blob in blobs)
    for blob, expected in zip(blobs, (content(5500), content(100, 1)), strict=True):
        with storage.stream(blob) as stream:
            assert drain(stream) == expected == storage.read(blob.url)
    assert here.requests["resolve"] == 6 + 1 + 2, "a request for each block, and two whole reads"


def test_list_of_shards(here: Hub, storage: Storage, tmp_path: Path) -> None:
    here.files |= {"a.tar": b"a", "shards.txt": f"{URL}/a.tar\n".encode()}
    found = freeze(storage, [f"@{URL}/shards.txt"])
    assert [(shard.url, shard.size) for shard in found] == [(f"{URL}/a.tar", 1)]


def test_model(here: Hub, storage: Storage, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    here.files |= {f"vq/{file.name}": file.read_bytes() for file in tiny_model.iterdir()}
    folder = storage.localize(f"{URL}/vq", (".json", ".safetensors"))
    assert VQModel.from_pretrained(folder).config == VQModel.from_pretrained(tiny_model).config


def test_shard_that_changes(here: Hub, storage: Storage) -> None:
    here.files["a.tar"] = content(100)
    blob = storage.stat(f"{URL}/a.tar")
    here.files["a.tar"] = content(100, seed=1)
    with pytest.raises(ShardError, match="not the one frozen") as caught, storage.stream(blob):
        pytest.fail("the stream was opened")
    assert caught.value.reason is ShardFault.CHANGED
    assert storage.read(blob.url) == content(100, seed=1)


def test_nothing_there(here: Hub, storage: Storage) -> None:
    here.files["in/a.tar"] = b"x"
    for url in (f"{URL}/in/b.tar", f"{URL}/in", "hf://datasets/tests/others/a.tar"):
        assert not storage.exists(url)
    here.files["in/b.tar"] = b"x"
    assert storage.exists(f"{URL}/in/b.tar")
    with pytest.raises(NotFound):
        storage.read(f"{URL}/c.tar")
    assert storage.list_folder(f"{URL}/out") == []


class Twice:
    """A plan: the first two requests whose path holds `word` are struck."""

    def __init__(self, word: str, fault: Fault) -> None:
        self.word, self.fault, self.left = word, fault, 2

    def __call__(self, request: Request) -> Fault | None:
        struck = self.word in request.path and self.left > 0
        self.left -= struck
        return self.fault if struck else None


FAULTS = [(word, Fault.SLOW_DOWN) for word in ("/api/", "/tree/", "/paths-info/", "/resolve/")]
STALLS = [(word, Fault.STALL) for word in ("/tree/", "/paths-info/")]  # to the others the client gives 10 seconds


@pytest.mark.parametrize(("word", "fault"), [*FAULTS, *STALLS])
def test_hub_that_fails_twice(here: Hub, failed: list[Exception], word: str, fault: Fault) -> None:
    here.files["in/a.tar"] = content(100)
    with fault_proxy(here.endpoint, Twice(word, fault)) as proxy:
        options = {"endpoint": proxy.endpoint, "token": False}
        storage = Storage(StorageConfig(options=options, retry_seconds=20, stall_seconds=0.5))
        assert len(storage.list_folder(f"{URL}/in")) == 1
        assert storage.read(f"{URL}/in/a.tar") == content(100)
    assert proxy.faults == {fault: 2}
    assert len(failed) == 2, "the client tries nothing again by itself"


def test_output_is_refused(here: Hub, storage: Storage) -> None:
    with pytest.raises(StoreRefused, match=r"hf:// has no create-if-absent; .*output\.allow_overwrite_commit"):
        probe(storage, f"{URL}/out")
    assert not here.requests
