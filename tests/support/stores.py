"""More servers on loopback, beside those of `s3`: moto (S3), Azurite (Azure), and an emulator of GCS (with conditions).

Each is a `Place`: an empty bucket, and how `Storage` finds it. Credentials are in the environment, as everywhere.
"""

import base64
import json
import re
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import fsspec
import pytest

from pipeline.storage import Storage, StorageConfig
from tests.support import servers
from tests.support.fault_proxy import Fault, FaultProxy, Kind, Plan, Request, fault_proxy, nothing
from tests.support.s3 import S3

BUCKET = "conformance"
AZURITE_ACCOUNT = "tokenmilltests"
AZURITE_KEY = base64.b64encode(b"tokenmill-test: not a secret of anybody").decode()


@dataclass(frozen=True)
class Place:
    """A bucket on a server.

    Attributes:
        url: of the bucket.
        environment: by which its client finds the server, and may use it.
        options: what `storage.options` needs on top.
        endpoint: the server's URL, as it stands in them.
    """

    url: str
    environment: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    endpoint: str = ""

    def storage(self, **settings: Any) -> Storage:
        """A storage for this place; the environment must be set."""
        return Storage(StorageConfig(options={**self.options, **settings.pop("options", {})}, **settings))


@contextmanager
def visited(place: Place) -> Iterator[Place]:
    """A place whose environment is set."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in place.environment.items():
            patch.setenv(name, value)
        yield place


@contextmanager
def behind(place: Place, plan: Plan = nothing) -> Iterator[tuple[FaultProxy, Place]]:
    """The same place with a fault proxy before it; the environment is set."""
    with fault_proxy(place.endpoint, plan) as proxy:

        def moved(values: Mapping[str, Any]) -> dict[str, Any]:
            return {name: value.replace(place.endpoint, proxy.endpoint) for name, value in values.items()}

        there = Place(place.url, moved(place.environment), moved(place.options), proxy.endpoint)
        with visited(there):
            yield proxy, there


@contextmanager
def moto(folder: Path) -> Iterator[S3]:
    """moto's S3 server: keeps conditions, takes any key, holds all in memory."""
    port = servers.free_ports(1)[0]
    server = S3(f"http://127.0.0.1:{port}")
    command = [_script("moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    with servers.process(command, folder, server.endpoint, {"MOTO_CALL_RESET_API": "false"}):
        yield server


@contextmanager
def azurite(folder: Path) -> Iterator[Place]:
    """Azurite, the emulator that Microsoft keeps, with one container."""
    port = servers.free_ports(1)[0]
    program = Path(sys.prefix, "node", "node_modules", ".bin", "azurite-blob")
    assert program.exists(), f"{program} is not installed; `make setup` installs what the tests need"
    endpoint = f"http://127.0.0.1:{port}"
    command = [str(program), "--blobHost", "127.0.0.1", "--blobPort", str(port), "-l", str(folder), "--silent"]
    secret = f"AccountName={AZURITE_ACCOUNT};AccountKey={AZURITE_KEY}"
    connection = f"DefaultEndpointsProtocol=http;{secret};BlobEndpoint={endpoint}/{AZURITE_ACCOUNT};"
    place = Place(f"abfs://{BUCKET}", {"AZURE_STORAGE_CONNECTION_STRING": connection}, endpoint=endpoint)
    account = {"AZURITE_ACCOUNTS": f"{AZURITE_ACCOUNT}:{AZURITE_KEY}"}
    with servers.process([*command, "--skipApiVersionCheck"], folder, endpoint, account), visited(place):
        fsspec.filesystem("abfs", connection_string=connection, skip_instance_cache=True).mkdir(BUCKET)
        yield place


class KeepsGeneration:
    """A plan that gives the emulator of GCS what it lacks: `ifGenerationMatch=0` fails if the name is taken."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._lock = Lock()

    def __call__(self, request: Request) -> Fault | None:
        place = urlsplit(request.path)
        query = parse_qs(place.query)
        with self._lock:
            if request.kind is Kind.DELETE:
                self._taken.discard(unquote(place.path.rpartition("/")[2]))
            if "uploadType" not in query or request.kind is not Kind.POST or "upload_id" in query:
                return None  # the bytes of a large upload follow its beginning, which was let in
            name = query["name"][0] if "name" in query else _name_in(request.body)
            if name in self._taken and query.get("ifGenerationMatch") == ["0"]:
                return Fault.TAKEN
            self._taken.add(name)
        return None


def _name_in(body: bytes) -> str:
    """The object's name in the first document of an upload's body."""
    found = re.search(rb'"name": ("(?:[^"\\]|\\.)*")', body)
    assert found, "an upload names its object in its address or in its body"
    return str(json.loads(found[1]))


@contextmanager
def gcs(folder: Path, *, conditions: bool = True) -> Iterator[Place]:
    """An emulator of GCS in memory, with one bucket. By itself it ignores conditions."""
    port = servers.free_ports(1)[0]
    endpoint = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--in-memory", "--default-bucket", BUCKET]
    plan = KeepsGeneration() if conditions else nothing
    with servers.process(command, folder, f"{endpoint}/", {}), fault_proxy(endpoint, plan) as proxy:
        options = {"token": "anon", "endpoint_url": proxy.endpoint}
        yield Place(f"gs://{BUCKET}", {}, options, proxy.endpoint)


def _script(name: str) -> str:
    return str(Path(sysconfig.get_path("scripts"), name))
