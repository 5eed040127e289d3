"""Credentials come from the provider chain, are asked for anew when they expire, and are seen nowhere."""

import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest

from pipeline.storage import Storage, StorageConfig, reading, remote
from pipeline.storage.failures import NoCredentials, StaleCredentials
from tests.storage.test_streams import content
from tests.support.credentials import CHAIN, Doorman, Issuer, issuer
from tests.support.fault_proxy import Fault, FaultProxy, Plan, fault_proxy
from tests.support.s3 import S3
from tests.support.stores import moto

pytestmark = pytest.mark.system

NOWHERE = {"AWS_SHARED_CREDENTIALS_FILE": "/nonexistent", "AWS_CONFIG_FILE": "/nonexistent"}
BLOCK = 1000  # bytes
LIFE_SECONDS = 2.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with moto(tmp_path_factory.mktemp("moto")) as server:
        server.make_bucket("inputs")
        yield server


@pytest.fixture
def chain(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without credentials."""
    for name in (*CHAIN, "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in NOWHERE.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def at(proxy: FaultProxy, **settings: float) -> Storage:
    return Storage(StorageConfig(options={"endpoint_url": proxy.endpoint}, **settings))


def use(chain: pytest.MonkeyPatch, given: Issuer) -> None:
    for name, value in given.environment.items():
        chain.setenv(name, value)


@pytest.mark.parametrize("claimed", [3600, 1], ids=["revoked early", "expiry told"])
def test_expiry_during_a_stream(server: S3, chain: pytest.MonkeyPatch, claimed: float) -> None:
    chain.setattr(reading, "BLOCK_BYTES", BLOCK)
    data, received = content(30 * BLOCK), bytearray()
    server.client().pipe_file("inputs/a.tar", data)
    with issuer(claimed) as given, fault_proxy(server.endpoint) as proxy:
        use(chain, given)
        proxy.plan = doorman = Doorman(given, LIFE_SECONDS)
        storage, working = at(proxy, retry_seconds=60), Event()
        with storage.stream(storage.stat("s3://inputs/a.tar")) as source:
            while block := source.read(BLOCK):
                received += block
                working.wait(0.2)  # a device that works: the stream outlives its credentials
    assert received == data
    assert len(doorman.let_in) > 1
    if claimed > LIFE_SECONDS:
        assert proxy.faults[Fault.EXPIRED] >= 1, "no request met an expiry"
        assert given.asked < 10, "one look at the chain for an expiry, not one for each request"


def test_every_call_meets_an_expiry(server: S3, chain: pytest.MonkeyPatch, tmp_path: Path) -> None:
    chain.setattr(remote, "RENEW_SECONDS", 0.1)  # each call meets an expiry of its own here
    (tmp_path / "file").write_bytes(b"x" * 100)
    with issuer(3600) as given, fault_proxy(server.endpoint) as proxy:
        use(chain, given)
        storage = at(proxy, retry_seconds=20)
        storage.write("s3://inputs/all/first", b"1")
        for call in (
            lambda: storage.stat("s3://inputs/all/first"),
            lambda: storage.list_folder("s3://inputs/all"),
            lambda: storage.read("s3://inputs/all/first"),
            lambda: storage.create("s3://inputs/all/second", tmp_path / "file"),
            lambda: storage.delete("s3://inputs/all/second"),
        ):
            before = proxy.faults[Fault.EXPIRED]
            proxy.plan = all_refused(frozenset(given.issued))
            call()
            assert proxy.faults[Fault.EXPIRED] > before


def all_refused(tokens: frozenset[str]) -> Plan:
    """A plan: these tokens are void."""
    return lambda request: Fault.EXPIRED if request.headers.get("X-Amz-Security-Token") in tokens else None


def test_chain_that_gives_nothing_newer(server: S3, chain: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        chain.setenv(name, "CANARY")
    start = time.monotonic()
    with (
        fault_proxy(server.endpoint, lambda _: Fault.EXPIRED) as proxy,
        pytest.raises(StaleCredentials, match="the credentials have expired") as caught,
    ):
        at(proxy, retry_seconds=2).stat("s3://inputs/a.tar")
    assert "CANARY" not in str(caught.value)
    assert proxy.faults[Fault.EXPIRED] > 1
    assert time.monotonic() - start < 6


def test_metadata_service_that_is_throttled(server: S3, chain: pytest.MonkeyPatch) -> None:
    with issuer(3600, busy=6) as given, fault_proxy(server.endpoint) as proxy:
        use(chain, given)
        at(proxy, retry_seconds=20, stall_seconds=57).write("s3://inputs/throttled", b"x")
    assert given.asked > 6


def test_chain_that_is_empty_is_no_long_wait(server: S3, chain: pytest.MonkeyPatch) -> None:
    start = time.monotonic()
    with fault_proxy(server.endpoint) as proxy, pytest.raises(NoCredentials, match="gives no credentials"):
        at(proxy, stall_seconds=56).stat("s3://inputs/a.tar")
    assert time.monotonic() - start < 15
    assert not proxy.requests
