"""A client sends a request once, whatever becomes of it: what is tried again is tried by our own policy.

Here for the clients of GCS and Azure, on real servers behind the fault proxy; `test_failures` counts S3's requests. An
attempt of gcsfs may be two requests: it asks whether a name is an object and whether it is a folder at the same time.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from pipeline.storage import Storage, rate
from pipeline.storage.failures import Busy
from tests.storage.test_failures import every_call
from tests.support.fault_proxy import Fault, FaultProxy, Kind, Request, nothing
from tests.support.stores import Place, azurite, behind, gcs

pytestmark = [
    pytest.mark.system,
    pytest.mark.filterwarnings("ignore:Sending a large body directly"),  # azure gives aiohttp bytes
]
OWN_CLIENT = (
    55.0  # seconds of silence; clients are kept by their options, and that of another test knows another server
)
STORES = {"gcs": gcs, "azurite": azurite}


class Busyness:
    """A plan: every request of some kinds is refused, and counted by what it asks for."""

    def __init__(self, *kinds: Kind) -> None:
        self._kinds, self.asked = kinds or tuple(Kind), Counter[tuple[Kind, str]]()

    def __call__(self, request: Request) -> Fault | None:
        if request.kind not in self._kinds:
            return None
        self.asked[request.kind, request.path] += 1
        return Fault.SLOW_DOWN


@pytest.fixture(scope="module", params=STORES)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple]:
    """A store that holds one object, behind a proxy."""
    with STORES[request.param](tmp_path_factory.mktemp(request.param)) as place, behind(place) as (proxy, there):
        there.storage(stall_seconds=OWN_CLIENT).write(f"{there.url}/folder/a", b"12345")
        yield proxy, there


@pytest.fixture
def proxy(server: tuple[FaultProxy, Place], monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    monkeypatch.setattr(rate, "_paces", {})  # a test does not wait for what the one before was refused
    yield server[0]
    server[0].plan = nothing


@pytest.fixture
def place(server: tuple[FaultProxy, Place]) -> Place:
    return server[1]


@every_call
def test_busy_store(proxy: FaultProxy, place: Place, call: Callable[[Storage, str], object]) -> None:
    proxy.plan = busy = Busyness()
    with pytest.raises(Busy, match=place.url):
        call(place.storage(retry_seconds=0, stall_seconds=OWN_CLIENT), f"{place.url}/folder")
    assert set(busy.asked.values()) == {1}


def test_attempts_at_a_busy_store(proxy: FaultProxy, place: Place, failed: list[Exception]) -> None:
    proxy.plan = busy = Busyness()
    with pytest.raises(Busy):
        place.storage(retry_seconds=1, stall_seconds=OWN_CLIENT).stat(f"{place.url}/folder/a")
    assert 2 <= len(failed) == max(busy.asked.values())


def test_attempts_at_a_range(proxy: FaultProxy, place: Place, failed: list[Exception]) -> None:
    storage = place.storage(retry_seconds=1, stall_seconds=OWN_CLIENT)
    proxy.plan = busy = Busyness(Kind.RANGE)
    with storage.open_random(f"{place.url}/folder/a") as file, pytest.raises(Busy):
        file.read()
    assert 2 <= len(failed) == busy.asked.total()


def test_silence_in_the_middle_of_a_body(proxy: FaultProxy, place: Place, failed: list[Exception]) -> None:
    struck = iter([Fault.STALL])
    proxy.plan = lambda request: next(struck, None) if request.kind is Kind.RANGE else None
    storage, start = place.storage(retry_seconds=20, stall_seconds=0.6), time.monotonic()
    assert storage.read(f"{place.url}/folder/a") == b"12345"
    assert (proxy.faults[Fault.STALL], len(failed)) == (1, 1)
    assert time.monotonic() - start < 10
