"""The manifest of an OUTPUT that several drivers extend: no order of their steps loses a shard."""

import queue
import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.errors import NotFound, StorageError
from pipeline.shards.frozen import ANNOUNCED, NAME, extend_manifest, read_manifest
from pipeline.shards.manifest import Shard, from_parquet, to_parquet
from pipeline.storage import Blob, Storage

OUTPUT = "s3://bucket/out"
ORDERS = 100  # of requests, for each case; 3,000 were tried once


def shard(name: str, size: int | None = 1) -> Shard:
    return Shard(name, f"file:///{name}.tar", size, None)


def written(storage: Storage, output: str) -> list[Shard]:
    """What a reader of manifest.parquet alone sees."""
    return from_parquet(storage.read(f"{output}/{NAME}"))


class Together(Storage):
    """Both drivers have read the manifest before either writes it."""

    def __init__(self, gate: threading.Barrier) -> None:
        super().__init__()
        self._gate, self.met = gate, False

    def write(self, url: str, data: bytes) -> None:
        if url.endswith(NAME) and not self.met:
            self._gate.wait(60)
            self.met = True
        super().write(url, data)


def test_two_drivers_at_the_same_moment(store_url: str) -> None:
    gate = threading.Barrier(2)
    drivers = {"a": Together(gate), "b": Together(gate)}
    with ThreadPoolExecutor(2) as pool:
        merged = {name: pool.submit(extend_manifest, one, store_url, [shard(name)]) for name, one in drivers.items()}
        assert all(shard(name) in one.result() for name, one in merged.items())
    assert all(one.met for one in drivers.values())
    assert written(Storage(), store_url) == read_manifest(Storage(), store_url) == [shard("a"), shard("b")]


def test_one_driver_leaves_the_manifest_alone(store_url: str) -> None:
    """Shards that were frozen keep what they were frozen with, unless asked otherwise."""
    for news, refrozen in (([shard("b")], ()), ([shard("a"), shard("b", 9)], ()), ([shard("b", 2)], "b")):
        extend_manifest(Storage(), store_url, news, refrozen)
        assert [blob.url for blob in Storage().list_folder(store_url)] == [f"{store_url}/{NAME}"]
    before = Storage().stat(f"{store_url}/{NAME}")
    extend_manifest(Storage(), store_url, [shard("b", 3)])
    assert Storage().stat(f"{store_url}/{NAME}") == before, "nothing new, nothing written"
    assert written(Storage(), store_url) == [shard("a"), shard("b", 2)]


def test_file_of_somebody_else(store_url: str) -> None:
    Storage().write(f"{store_url}/notes{ANNOUNCED}", b"not ours")
    assert extend_manifest(Storage(), store_url, [shard("a")]) == [shard("a")]
    assert Storage().read(f"{store_url}/notes{ANNOUNCED}") == b"not ours"


def test_last_word_on_a_shard_counts(tmp_path: Path) -> None:
    """A driver that was killed before it wrote the manifest, and a later one that freezes its shard anew."""
    output = str(tmp_path)
    (tmp_path / f"000007-{'0' * 32}{ANNOUNCED}").write_bytes(to_parquet([shard("a", 1)]))
    assert read_manifest(Storage(), output) == [shard("a", 1)]
    assert extend_manifest(Storage(), output, [shard("a", 2)]) == written(Storage(), output) == [shard("a", 1)]
    assert extend_manifest(Storage(), output, [shard("a", 2)], "a") == written(Storage(), output) == [shard("a", 2)]
    assert read_manifest(Storage(), output) == [shard("a", 2)]
    assert sorted(path.name[:6] for path in tmp_path.glob(f"*{ANNOUNCED}")) == ["000007", "000008"]


def test_write_that_fails(store_url: str) -> None:
    class Full(Storage):
        def write(self, url: str, data: bytes) -> None:
            if url.endswith(NAME):
                raise StorageError("no space left")
            super().write(url, data)

    with pytest.raises(StorageError, match="no space left"):
        extend_manifest(Full(), store_url, [shard("a")])
    assert Storage().list_folder(store_url) == []


# --- every order of steps ---------------------------------------------------------------------------------------------


class Killed(BaseException):
    """SIGKILL, as far as a thread can feel it: no request works any more."""


class Turns:
    """Drivers in threads of their own, each of whose requests waits for its turn.

    Attributes:
        objects: what the store holds.
        killed: drivers that get no further.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.killed: set[str] = set()
        self._asking: queue.Queue[tuple[str, threading.Event | None]] = queue.Queue()

    def play(self, drivers: str, chance: random.Random, deaths: int) -> None:
        """Have each driver add its shard, one request at a time in random order; some requests kill their driver."""
        waiting: dict[str, threading.Event] = {}
        live = len(drivers)
        with ThreadPoolExecutor(live) as pool:
            pool.map(self._drive, drivers)
            while live:
                driver, turn = self._asking.get(timeout=60)
                if turn is None:
                    live -= 1
                else:
                    waiting[driver] = turn
                if live and len(waiting) == live:
                    chosen = chance.choice(sorted(waiting))
                    if len(self.killed) < deaths and chance.random() < 0.1:
                        self.killed.add(chosen)
                    waiting.pop(chosen).set()

    def wait(self, driver: str) -> None:
        """Wait for this driver's turn."""
        turn = threading.Event()
        self._asking.put((driver, turn))
        turn.wait(60)
        if driver in self.killed:
            raise Killed

    def _drive(self, driver: str) -> None:
        with suppress(Killed):
            extend_manifest(OneDriver(self, driver), OUTPUT, [shard(driver)])
        self._asking.put((driver, None))


class OneDriver(Storage):
    """The store in memory, as one driver reaches it."""

    def __init__(self, turns: Turns, driver: str) -> None:
        super().__init__()
        self._turns, self._driver = turns, driver

    def list_folder(self, folder: str, suffix: str = "") -> list[Blob]:
        self._turns.wait(self._driver)
        return [Blob(url, 1, None) for url in sorted(self._turns.objects) if url.endswith(suffix)]

    def read(self, url: str) -> bytes:
        self._turns.wait(self._driver)
        if url not in self._turns.objects:
            raise NotFound(url)
        return self._turns.objects[url]

    def write(self, url: str, data: bytes) -> None:
        self._turns.wait(self._driver)
        self._turns.objects[url] = data

    def delete(self, url: str) -> None:
        self._turns.wait(self._driver)
        self._turns.objects.pop(url, None)


@pytest.mark.parametrize(("drivers", "deaths"), [("ab", 0), ("abcd", 0), ("abc", 1), ("abcd", 2)])
def test_no_order_of_requests_loses_a_shard(drivers: str, deaths: int) -> None:
    met = Counter[str]()
    for seed in range(ORDERS):
        turns = Turns()
        turns.play(drivers, random.Random(seed), deaths)
        met.update(killed=len(turns.killed), left=sum(url.endswith(ANNOUNCED) for url in turns.objects))
        if turns.killed:
            turns.play("z", random.Random(seed), 0)  # the next run puts in order what the dead left
        found = {one.id for one in from_parquet(turns.objects[f"{OUTPUT}/{NAME}"])}
        assert found >= set(drivers) - turns.killed, f"seed {seed}"
    assert met["left"], "some must have met"
    assert bool(met["killed"]) == bool(deaths)
