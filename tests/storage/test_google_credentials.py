"""The keys of Google's chain: tokens of a service account are renewed in the middle of a stream, and never shown.

A real client of GCS, with a token service and a door of ours before the emulator, which lets anybody in.
"""

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from pipeline.storage import Forbidden, Storage, reading
from tests.storage.test_streams import content
from tests.support.credentials import TOKEN, google_issuer
from tests.support.fault_proxy import Fault, FaultProxy, Request
from tests.support.stores import Place, behind, gcs

pytestmark = pytest.mark.system

BLOCK = 1000  # bytes
LIFE_SECONDS = 4.0
MARGIN_SECONDS = 300  # before its end, gcsfs takes a token for old


class Door:
    """A plan: only tokens that were issued at most `LIFE_SECONDS` ago come in.

    Attributes:
        issued: token -> when it was issued.
        let_in: those that were good once.
    """

    def __init__(self, issued: dict[str, float]) -> None:
        self.issued, self.let_in = issued, set[str]()

    def __call__(self, request: Request) -> Fault | None:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if time.monotonic() - self.issued.get(token, float("-inf")) > LIFE_SECONDS:
            return Fault.UNAUTHORIZED
        self.let_in.add(token)
        return None


@pytest.fixture(scope="module")
def key() -> str:
    """A private key of nobody."""
    made = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return made.private_bytes(*form).decode()


@pytest.fixture
def store(tmp_path: Path, key: str) -> Iterator[tuple[Storage, FaultProxy, Door]]:
    """A store behind the door, for a service account."""
    with google_issuer(MARGIN_SECONDS + LIFE_SECONDS / 2) as given, gcs(tmp_path) as open_place:
        account = {
            "type": "service_account",
            "client_email": "nobody@example",
            "private_key": key,
            "project_id": "none",
        }
        (tmp_path / "account.json").write_text(json.dumps({**account, "token_uri": given.endpoint}))
        environment = {"GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "account.json")}
        place = Place(open_place.url, environment, {"endpoint_url": open_place.endpoint}, open_place.endpoint)
        with behind(place, door := Door(given.issued)) as (proxy, there):
            yield there.storage(retry_seconds=5), proxy, door


def test_expiry_during_a_stream(
    store: tuple[Storage, FaultProxy, Door], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(reading, "BLOCK_BYTES", BLOCK)
    (storage, proxy, door), received, working = store, bytearray(), Event()
    storage.write("gs://conformance/a.tar", content(16 * BLOCK))
    with storage.stream(storage.stat("gs://conformance/a.tar")) as source:
        while block := source.read(BLOCK):
            received += block
            working.wait(0.2)  # a device that works: the stream outlives its token
    assert received == content(16 * BLOCK)
    assert len(door.let_in) > 1
    assert not proxy.faults
    assert TOKEN not in caplog.text


def test_token_that_is_refused(store: tuple[Storage, FaultProxy, Door], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    storage, proxy, door = store
    door.issued = {}
    with pytest.raises(Forbidden, match="permission denied") as caught:
        storage.stat("gs://conformance/a.tar")
    assert TOKEN not in str(caught.value) + caplog.text
    assert proxy.faults[Fault.UNAUTHORIZED] >= 1
