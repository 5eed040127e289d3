"""`hf://`: data sets of the Hugging Face Hub are read as any store is, and written if overwriting is accepted."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants

from pipeline.commit import Outcome, probe
from pipeline.errors import NotFound, ShardError, ShardFault, StoreRefused
from pipeline.model import VQModel
from pipeline.shards.manifest import freeze
from pipeline.storage import Storage, StorageConfig, reading
from pipeline.tokenize_shard import tokenize_shard
from pipeline.tokens.writer import OutputConfig
from tests.storage.test_streams import content, drain
from tests.support.fault_proxy import Fault, FaultProxy, Request, fault_proxy
from tests.support.hub import REPO, Hub, hub
from tests.support.lines import production_line

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's own call

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
        storage = through(proxy)
        assert len(storage.list_folder(f"{URL}/in")) == 1
        assert storage.read(f"{URL}/in/a.tar") == content(100)
    assert proxy.faults == {fault: 2}
    assert len(failed) == 2, "the client tries nothing again by itself"


def through(proxy: FaultProxy, **settings: float) -> Storage:
    options = {"endpoint": proxy.endpoint, "token": False}
    return Storage(StorageConfig(options=options, **{"retry_seconds": 20, "stall_seconds": 0.5, **settings}))


@pytest.fixture
def by_lfs(here: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of 100 bytes and more are sent ahead, in the older way, which any HTTP server can speak."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    here.large = 100


def test_whole_life_of_an_object(here: Hub, storage: Storage, tmp_path: Path) -> None:
    url = f"{URL}/out/a b#c%20.bin"
    storage.write(url, b"one")
    before = storage.stat(url)
    assert (storage.read(url), before) == (b"one", *storage.list_folder(f"{URL}/out"))
    (tmp_path / "file").write_bytes(b"two, and longer")
    storage.put(url, tmp_path / "file")
    assert storage.read(url) == b"two, and longer"
    assert storage.stat(url).etag != before.etag
    storage.delete(url)
    storage.delete(url)
    assert not storage.exists(url)
    assert here.requests["commit"] == 2 + 2


@pytest.mark.usefixtures("by_lfs")
def test_part(here: Hub, storage: Storage, tmp_path: Path, corpus: Path, tiny_model: Path) -> None:
    (shard,) = freeze(Storage(), [str(corpus / "00000.tar")])
    for output in (str(tmp_path), f"{URL}/out"):
        with production_line(tiny_model, output, storage=storage) as line:
            accepted = replace(line, output=OutputConfig(url=output, allow_overwrite_commit=True))
            assert tokenize_shard(shard, accepted).outcome is Outcome.DONE
            assert tokenize_shard(shard, accepted).outcome is Outcome.LOST
    name = f"tokens/{shard.id}.parquet"
    assert here.files[f"out/{name}"] == (tmp_path / name).read_bytes()
    assert here.files[f"out/{name}"] in here.objects.values()


STEPS = ("/preupload/", "/batch", "/lfs/", "/commit/")
DARK = [("/lfs/", Fault.STALL), ("/commit/", Fault.STALL), ("/commit/", Fault.LOST)]


@pytest.mark.usefixtures("by_lfs")
@pytest.mark.parametrize(("word", "fault"), [*((step, Fault.SLOW_DOWN) for step in STEPS), *DARK])
def test_write_that_fails_twice(here: Hub, failed: list[Exception], word: str, fault: Fault) -> None:
    with fault_proxy(here.endpoint, Twice(word, fault)) as proxy:
        here.endpoint = proxy.endpoint  # where it sends large files to
        through(proxy).write(f"{URL}/out/a.bin", content(100))
    assert here.files == {"out/a.bin": content(100)}
    assert proxy.faults == {fault: 2}
    assert len(failed) == 2, "the client tries nothing again by itself"


@pytest.mark.parametrize("deed", [lambda storage, url: storage.write(url, b"new"), Storage.delete])
def test_branch_that_moves_under_a_commit(here: Hub, deed: Callable[[Storage, str], None]) -> None:
    here.files["out/a.bin"] = b"old"
    with fault_proxy(here.endpoint, Twice("/commit/", Fault.TAKEN)) as proxy:
        deed(through(proxy), f"{URL}/out/a.bin")
    assert here.files.get("out/a.bin") in (b"new", None)
    assert proxy.faults == {Fault.TAKEN: 2}


def test_token_of_the_user(here: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("HF_TOKEN", token := "hf_canaryCANARYcanary")
    storage = Storage(StorageConfig(options={"endpoint": here.endpoint}, retry_seconds=0))
    storage.write(f"{URL}/a.bin", b"x")
    assert storage.read(f"{URL}/a.bin") == b"x"
    with pytest.raises(NotFound) as caught:
        storage.read("hf://datasets/tests/others/a.bin")
    assert here.tokens == {f"Bearer {token}"}
    assert token not in str(caught.value) + caplog.text


def test_bucket_of_the_hub(storage: Storage) -> None:
    with pytest.raises(StoreRefused, match=r"hf://buckets/tests/images/a.bin: buckets of the Hub cannot be written"):
        storage.write(f"hf://buckets/{REPO}/a.bin", b"x")


def test_output_is_refused(here: Hub, storage: Storage) -> None:
    with pytest.raises(StoreRefused, match=r"hf:// has no create-if-absent; .*output\.allow_overwrite_commit"):
        probe(storage, f"{URL}/out")
    assert not here.requests
