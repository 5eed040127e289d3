"""What Tokenmill asks of a store, on every kind of store it knows: each on a real server, none mocked.

Known deviations: moto and the emulator of GCS take any credentials. SeaweedFS 4.48 and moto keep the condition on the
completion of a multipart upload against an object that is there, but not among racers: two of them can be told that
they have won (measured: 3 of 12 races of six; never by a PUT, also of 600 MiB). The emulator knows no name with `;` and
gives all names in one page. To SeaweedFS and Azurite a backslash is a slash. rclone, and the emulator alone, ignore
conditions: the probe must refuse them (tests/test_commit.py, and below).
"""

import logging
import os
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier
from urllib.parse import parse_qs, quote

import pytest
from azure.storage.blob import generate_container_sas

from pipeline.commit import probe
from pipeline.errors import AlreadyExists, NotFound, ShardError, ShardFault, StoreRefused, UsageError
from pipeline.storage import Forbidden, Storage, multipart, reading
from tests.storage.test_objects import names
from tests.storage.test_streams import content, drain
from tests.support.s3 import S3
from tests.support.stores import AZURITE_ACCOUNT, AZURITE_KEY, BUCKET, Place, azurite, gcs, moto

pytestmark = pytest.mark.system

RACERS = 16
ODD_NAMES = [
    *("a b.tar", "a+b.tar", "a%20b.tar", "100%.tar", "a#b.tar", "a&b=c;d,e.tar", "a'b\"(c)!.tar", "a@b.tar"),
    *("ü图🙂.tar", "u\u0308.tar", "a:b.tar", "~a$b.tar", ".hidden.tar", "a..b.tar", " a .tar", "a^b`c|d<e>f.tar"),
    *("a?b.tar", "a*b.tar", "**.tar", "a[1].tar", "[!a]b.tar", "a{1}b.tar"),  # wildcards, in a pattern
]
STORES = ["local", "seaweedfs", "moto", "azurite", "gcs"]


@pytest.fixture(scope="session")
def of_local(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(f"file://{tmp_path_factory.mktemp('local')}")


@pytest.fixture(scope="session")
def of_seaweedfs(s3: S3) -> Place:
    return Place(s3.make_bucket("conformance"))


@pytest.fixture(scope="session")
def of_moto(s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with moto(tmp_path_factory.mktemp("moto")) as server:
        yield Place(server.make_bucket("conformance"), {}, {"endpoint_url": server.endpoint})


@pytest.fixture(scope="session")
def of_azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with azurite(tmp_path_factory.mktemp("azurite")) as place:
        yield place


@pytest.fixture(scope="session")
def of_gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with gcs(tmp_path_factory.mktemp("gcs")) as place:
        yield place


@pytest.fixture(params=STORES)
def place(request: pytest.FixtureRequest) -> Place:
    return request.getfixturevalue(f"of_{request.param}")


@pytest.fixture
def storage(place: Place) -> Storage:
    return place.storage(retry_seconds=20)


@pytest.fixture
def folder(place: Place) -> str:
    """An empty folder."""
    return f"{place.url}/{uuid.uuid4().hex}"


def in_parallel(deed: Callable[[int], str], count: int = RACERS) -> Counter[str]:
    """Do the same thing `count` times at the same moment."""
    start = Barrier(count)

    def racer(number: int) -> str:
        start.wait(60)
        return deed(number)

    with ThreadPoolExecutor(count) as pool:
        return Counter(pool.map(racer, range(count)))


def test_whole_life_of_an_object(storage: Storage, folder: str) -> None:
    url = f"{folder}/a.tar"
    storage.write(url, b"one, and longer")
    before = storage.stat(url)
    assert (before.url, before.size) == (url, 15)
    assert before.etag
    assert before == storage.stat(url) == storage.list_folder(folder)[0] == storage.glob(f"{folder}/*")[0]
    storage.write(url, b"two")
    assert storage.read(url) == b"two"
    assert storage.stat(url).etag != before.etag
    storage.delete(url)
    storage.delete(url)
    assert storage.list_folder(folder) == []


def test_odd_names(storage: Storage, folder: str, tmp_path: Path) -> None:
    odd = [name.replace(";", "") if folder.startswith("gs:") else name for name in ODD_NAMES]
    urls = sorted(f"{folder}/in here #1/{name}" for name in odd)
    for url in urls:
        (tmp_path / "file").write_bytes(url.encode())
        storage.create(url, tmp_path / "file")
    listed = storage.list_folder(f"{folder}/in here #1")
    assert [blob.url for blob in listed] == urls
    assert listed == storage.glob(f"{folder}/in here #1/*") == storage.glob(f"{folder}/in*/*.tar")
    for blob in listed:
        assert storage.stat(blob.url) == blob
        with storage.stream(blob) as stream:
            assert drain(stream) == storage.read(blob.url) == blob.url.encode()
        storage.delete(blob.url)
    assert storage.list_folder(f"{folder}/in here #1") == []


@pytest.mark.parametrize("place", [store for store in STORES if store != "gcs"], indirect=True)
def test_list_beyond_one_page(storage: Storage, folder: str) -> None:
    expected = [f"{number:04d}.tar" for number in range(1001)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: storage.write(f"{folder}/{name}", b"x"), expected))
    assert names(storage.list_folder(folder, ".tar")) == names(storage.glob(f"{folder}/*.tar")) == expected


def test_ranges(storage: Storage, folder: str) -> None:
    url, data = f"{folder}/a", content(5000)
    storage.write(url, data)
    with storage.open_random(url) as file:
        assert (file.seek(-10, os.SEEK_END), file.read(100)) == (4990, data[-10:])
        assert (file.seek(17), file.read(1000), file.tell()) == (17, data[17:1017], 1017)


def test_race_for_one_name(storage: Storage, folder: str, tmp_path: Path) -> None:
    # Letters: the GCS emulator loses a final carriage return, which it takes for the end of a MIME part.
    url, contents = f"{folder}/a.parquet", [bytes([ord("a") + racer]) * 200_001 for racer in range(RACERS)]

    def create(racer: int) -> str:
        (tmp_path / str(racer)).write_bytes(contents[racer])
        try:
            storage.create(url, tmp_path / str(racer))
        except AlreadyExists:
            return "lost"
        return f"won {racer}"

    outcomes = in_parallel(create)
    assert outcomes == {"lost": RACERS - 1, f"won {contents.index(storage.read(url))}": 1}
    assert names(storage.list_folder(folder)) == ["a.parquet"]


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multipart, "ONE_PUT_BYTES", 6 << 20)
    monkeypatch.setattr(multipart, "PART_BYTES", 5 << 20)


@pytest.mark.filterwarnings("ignore:Sending a large body directly")  # azure gives aiohttp bytes
@pytest.mark.usefixtures("small_parts")
def test_large_file_and_another(storage: Storage, folder: str, tmp_path: Path) -> None:
    url, data = f"{folder}/a.parquet", content(1 << 16) * 112
    (tmp_path / "first").write_bytes(data)
    (tmp_path / "second").write_bytes(data[::-1])
    storage.create(url, tmp_path / "first")
    with pytest.raises((AlreadyExists, StoreRefused)):  # the emulator cannot cancel what gcsfs gives up
        storage.create(url, tmp_path / "second")
    assert storage.read(url) == data
    assert names(storage.list_folder(folder)) == ["a.parquet"]


@pytest.mark.parametrize("place", STORES[1:], indirect=True)
@pytest.mark.filterwarnings("ignore:Sending a large body directly")
def test_upload_is_felt_while_it_goes_on(storage: Storage, folder: str, tmp_path: Path) -> None:
    """A slow one must not pass for a stall: at most one part goes by between two signs of life."""
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", 2 * multipart.PART_BYTES + 1)
    ways = [Storage.put, Storage.create]
    for number, way in enumerate([*ways, Storage.create_in_parts] if folder.startswith("s3:") else ways):
        moves: list[str] = []
        way(storage.watched(lambda moves=moves: moves.append("some more")), f"{folder}/{number}", tmp_path / "large")
        assert len(moves) >= 3


@pytest.mark.parametrize("place", ["local", "azurite", "gcs"], indirect=True)
@pytest.mark.filterwarnings("ignore:Sending a large body directly")
@pytest.mark.usefixtures("small_parts")
def test_race_of_large_files(storage: Storage, folder: str, tmp_path: Path) -> None:
    url, contents = f"{folder}/a.parquet", [content(1 << 16, racer) * 112 for racer in range(4)]

    def create(racer: int) -> str:
        (tmp_path / str(racer)).write_bytes(contents[racer])
        try:
            storage.create(url, tmp_path / str(racer))
        except AlreadyExists:
            return "lost"
        return f"won {racer}"

    outcomes = in_parallel(create, 4)
    assert outcomes == {"lost": 3, f"won {contents.index(storage.read(url))}": 1}
    assert names(storage.list_folder(folder)) == ["a.parquet"]


def test_stream_of_an_object_that_changes(storage: Storage, folder: str) -> None:
    url = f"{folder}/a.tar"
    storage.write(url, content(5000))
    blob = storage.stat(url)
    with storage.stream(blob) as stream:
        assert drain(stream) == content(5000)
    storage.write(url, content(5000, seed=1))
    with pytest.raises(ShardError, match="not the one frozen"), storage.stream(blob):
        pytest.fail("the stream was opened")


def test_stream_of_an_object_that_changes_meanwhile(
    storage: Storage, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BLOCK_BYTES", 1000)
    url = f"{folder}/a.tar"
    storage.write(url, content(20_000))

    def read_while_it_changes() -> None:
        with storage.stream(storage.stat(url)) as stream:
            stream.read(1000)
            storage.write(url, content(20_000, seed=1))
            drain(stream)

    with pytest.raises(ShardError) as caught:
        read_while_it_changes()
    assert caught.value.reason is ShardFault.CHANGED


def test_probe_leaves_nothing(storage: Storage, folder: str) -> None:
    probe(storage, folder)
    if folder.startswith("s3:"):
        probe(storage, folder, in_parts=True)
    assert storage.list_folder(folder) == []


def test_nothing_there(storage: Storage, folder: str) -> None:
    storage.write(f"{folder}/below/a.tar", b"")
    for name in ("missing", "below", "below/a.tar/deeper"):
        with pytest.raises(NotFound, match=f"{folder}/{name}: not found"):
            storage.stat(f"{folder}/{name}")
    with pytest.raises(NotFound):
        storage.read(f"{folder}/missing")
    assert storage.list_folder(f"{folder}/missing") == []


@pytest.mark.parametrize("place", STORES[1:], indirect=True)
def test_missing_bucket(place: Place, storage: Storage, tmp_path: Path) -> None:
    url = place.url.replace("conformance", "no-such-bucket") + "/a"
    (tmp_path / "file").write_bytes(b"x")
    for call in (lambda: storage.stat(url), lambda: storage.create(url, tmp_path / "file")):
        with pytest.raises((UsageError, NotFound), match=url):
            call()


# --- stores that ask who is there -------------------------------------------------------------------------------------


def test_key_of_azurite_is_not_logged(of_azurite: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    of_azurite.storage().write(f"{of_azurite.url}/a", b"x")
    assert of_azurite.storage().read(f"{of_azurite.url}/a") == b"x"
    assert AZURITE_KEY not in caplog.text


def test_wrong_key_at_azurite(of_azurite: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    variable = "AZURE_STORAGE_CONNECTION_STRING"
    monkeypatch.setenv(variable, of_azurite.environment[variable].replace(AZURITE_KEY, f"Canary{AZURITE_KEY[6:]}"))
    with pytest.raises(Forbidden, match="permission denied") as caught:
        of_azurite.storage(retry_seconds=0, stall_seconds=59).stat(f"{of_azurite.url}/a")
    assert "Canary" not in str(caught.value)


def test_expired_signature_at_azurite(
    of_azurite: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    variable, storage = "AZURE_STORAGE_CONNECTION_STRING", of_azurite.storage(retry_seconds=0, stall_seconds=58)
    past = datetime.now(UTC) - timedelta(hours=1)
    rights = {"permission": "rl", "start": past - timedelta(hours=1), "expiry": past}
    signature = generate_container_sas(AZURITE_ACCOUNT, BUCKET, account_key=AZURITE_KEY, **rights)
    place = f"BlobEndpoint={of_azurite.endpoint}/{AZURITE_ACCOUNT}"
    monkeypatch.setenv(variable, f"{place};SharedAccessSignature={signature}")
    with pytest.raises(Forbidden, match="permission denied") as caught:
        storage.stat(f"{of_azurite.url}/a")
    secret = parse_qs(signature)["sig"][0]
    said = str(caught.value) + caplog.text
    assert secret not in said
    assert quote(secret, safe="") not in said


def test_no_permission_at_seaweedfs(of_seaweedfs: Place, tmp_path: Path) -> None:
    url = f"{of_seaweedfs.url}/private"
    (tmp_path / "file").write_bytes(b"x")
    of_seaweedfs.storage().create(url, tmp_path / "file")
    stranger = of_seaweedfs.storage(options={"anon": True}, retry_seconds=0)
    for call in (lambda: stranger.stat(url), lambda: stranger.create(f"{url}2", tmp_path / "file")):
        with pytest.raises(Forbidden, match="permission denied"):
            call()
    blob = of_seaweedfs.storage().stat(url)
    with pytest.raises(ShardError, match="permission denied") as refused, stranger.stream(blob):
        pytest.fail("the stream was opened")
    assert refused.value.reason is ShardFault.FORBIDDEN


def test_store_that_ignores_conditions(tmp_path: Path) -> None:
    with gcs(tmp_path, conditions=False) as place, pytest.raises(StoreRefused, match="allow_overwrite_commit"):
        probe(place.storage(), f"{place.url}/out")
