"""Real servers on loopback: SeaweedFS, which keeps create-if-absent; rclone, which does not, and which speaks http."""

import shutil
import sysconfig
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import s3fs

from tests.support import servers

KEY, SECRET = "tokenmill-test", "not-a-secret-of-anybody"


@dataclass(frozen=True)
class S3:
    """A running S3 server.

    Attributes:
        endpoint: its URL.
    """

    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which any S3 client finds the server and may use it."""
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_EC2_METADATA_DISABLED": "true",  # no search for an instance role where a test takes the keys away
        }

    def client(self) -> s3fs.S3FileSystem:
        """A client of its own, to look from outside at what Tokenmill did."""
        return s3fs.S3FileSystem(key=KEY, secret=SECRET, endpoint_url=self.endpoint, use_listings_cache=False)

    def make_bucket(self, name: str) -> str:
        """Make a bucket; returns its URL."""
        self.client().mkdir(name)
        return f"s3://{name}"


@contextmanager
def seaweedfs(folder: Path, host: servers.Host = servers.HERE) -> Iterator[S3]:
    """SeaweedFS with its data in `folder`, and a bucket `tok`."""
    named = ("master", "volume", "filer", "s3", "admin")
    ports = servers.free_ports(2 * len(named))
    options = [f"-{name}.port={port}" for name, port in zip(named, ports, strict=False)]
    options += [f"-{name}.port.grpc={port}" for name, port in zip(named, ports[len(named) :], strict=True)]
    options += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false"]
    options += [f"-{name}.localSocket={folder / name}.sock" for name in ("s3", "filer")]
    options += ["-master.telemetry=false", "-s3.autoCreateBucket=false", f"-dir={folder}"]
    server = S3(f"http://{host.address}:{ports[named.index('s3')]}")
    command = [_binary("weed"), "mini", f"-ip={host.address}", f"-ip.bind={host.address}", "-bucket=tok", *options]
    try:
        with servers.process(command, folder, server.endpoint, server.environment, host):
            yield server
    finally:
        for port in ports:
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink()


@contextmanager
def rclone(folder: Path) -> Iterator[S3]:
    """`rclone serve s3` of `folder`: it overwrites what a conditional PUT must not touch."""
    port = servers.free_ports(1)[0]
    command = [_binary("rclone"), "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{KEY},{SECRET}"]
    server = S3(f"http://127.0.0.1:{port}")
    data = folder / "data"
    data.mkdir()
    with servers.process([*command, str(data)], folder, server.endpoint, {"RCLONE_CONFIG": str(folder / "none")}):
        yield server


@contextmanager
def web(folder: Path, data: Path) -> Iterator[str]:
    """A web server of the files in `data`, which knows ranges; its URL."""
    endpoint = f"http://127.0.0.1:{servers.free_ports(1)[0]}"
    command = [_binary("rclone"), "serve", "http", "--addr", endpoint.removeprefix("http://"), str(data)]
    command += ["--dir-cache-time", "0s"]  # tell of changes at once
    with servers.process(command, folder, endpoint, {"RCLONE_CONFIG": str(folder / "none")}):
        yield endpoint


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """SeaweedFS for the whole session; `Storage()` and child processes find it through the environment."""
    with seaweedfs(tmp_path_factory.mktemp("s3")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        server.make_bucket("tests")
        yield server


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.system)])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder, once on local disk and once on S3."""
    if request.param == "s3":
        request.getfixturevalue("s3")
        return f"s3://tests/{uuid.uuid4().hex}"
    return f"file://{tmp_path}/store"


def _binary(name: str) -> str:
    found = shutil.which(name, path=sysconfig.get_path("scripts"))
    assert found, f"{name} is not installed; `make setup` installs what the tests need"
    return found
