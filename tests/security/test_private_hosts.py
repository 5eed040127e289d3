"""An http(s) input never reaches the machine's own network: not by address, spelling, name, redirect or rebinding."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import aiohttp
import pytest

from pipeline.errors import StorageError, UsageError
from pipeline.storage import Blob, Storage, StorageConfig, addresses

SECRET = b"the credentials of this machine"
PUBLIC, PRIVATE = "127.0.0.2", "127.0.0.1"  # both are loopback; the tests declare the first one public
ANYWHERE = StorageConfig(allow_http=True, allow_private_hosts=True, retry_seconds=0)
OUTSIDE = StorageConfig(allow_http=True, retry_seconds=5)  # a refusal must not be tried again


@dataclass
class Site:
    """A web server: `/to/URL` redirects to URL, everything else is `SECRET`.

    Attributes:
        port: where it listens.
        requests: paths that were asked for, in order.
    """

    port: int
    requests: list[str] = field(default_factory=list)


@contextmanager
def site(host: str, port: int = 0) -> Iterator[Site]:
    """A site on one loopback address; port 0 takes a free one."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.requests.append(self.path)
            target = self.path.removeprefix("/to/")
            self.send_response(200 if target == self.path else 302)
            self.send_header("Location", target)
            self.send_header("Content-Length", str(len(SECRET)))
            self.end_headers()
            self.wfile.write(SECRET)

        do_HEAD = do_GET  # noqa: N815 - a name of the protocol

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    with ThreadingHTTPServer((host, port), Handler) as server:
        found = Site(server.server_port)
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def metadata() -> Iterator[Site]:
    """The server that must not be reached."""
    with site(PRIVATE) as found:
        yield found


@pytest.fixture
def front(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server whose address counts as public."""
    really = addresses.is_public
    monkeypatch.setattr(addresses, "is_public", lambda address: address == PUBLIC or really(address))
    with site(PUBLIC) as found:
        yield found


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0x7f000001", "0x7f.0.0.1", "①②⑦.⓪.⓪.①", "127。0。0。1"])
def test_spelling_of_loopback(host: str, metadata: Site) -> None:
    url = f"http://{host}:{metadata.port}/a.tar"
    assert Storage(ANYWHERE).read(url) == SECRET, "the spelling works, so only the rule can refuse it"
    metadata.requests.clear()
    with pytest.raises(UsageError, match=r"leads to a private address, which storage\.allow_private_hosts would allow"):
        Storage(OUTSIDE).read(url)
    assert metadata.requests == []


@pytest.mark.parametrize("host", ["2130706433", "0177.0.0.1", "127.1", "0", "127.0.0.1."])
def test_spelling_that_no_client_takes(host: str, metadata: Site) -> None:
    with pytest.raises(UsageError, match="is not a canonical IPv4 address"):
        Storage(OUTSIDE).read(f"http://{host}:{metadata.port}/a.tar")
    assert metadata.requests == []


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("[0:0:0:0:0:0:0:1]", "private address"),
        ("[0:0:0:0:0:ffff:7f00:1]", "private address"),
        ("[0:0:0:0:0:ffff:a9fe:a9fe]", "private address"),
        ("[::1]", "chained URLs"),
        ("public.example@127.0.0.1", "credentials in URLs"),
        ("169.254.169.254", "private address"),
        ("10.0.0.1", "private address"),
    ],
)
def test_address_that_is_refused_without_a_connection(host: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Storage(OUTSIDE).read(f"http://{host}/latest/meta-data")


@pytest.mark.parametrize("action", ["stat", "read", "stream", "open_random"])
@pytest.mark.parametrize(
    "target", ["http://127.0.0.1:{port}/x", "http://localhost:{port}/x", "http://169.254.169.254/x"]
)
def test_redirect_to_the_own_network(target: str, action: str, front: Site, metadata: Site) -> None:
    url = f"http://{PUBLIC}:{front.port}/to/{target.format(port=metadata.port)}"
    with pytest.raises(UsageError, match="leads to a private address"):
        perform(Storage(OUTSIDE), action, url)
    assert front.requests, "the redirect was met"
    assert metadata.requests == []


def perform(storage: Storage, action: str, url: str) -> None:
    """Read `url` in one of the ways that a Storage has."""
    if action == "stream":
        with storage.stream(Blob(url, len(SECRET), None)) as stream:
            stream.read(10)
    elif action == "open_random":
        with storage.open_random(url) as file:
            file.read()
    else:
        getattr(storage, action)(url)


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.2/a.tar"])
def test_redirect_to_no_web_server(target: str, front: Site) -> None:
    with pytest.raises(UsageError, match="this request cannot work"):
        Storage(OUTSIDE).read(f"http://{PUBLIC}:{front.port}/to/{target}")
    assert front.requests


def test_public_host_and_its_redirects_are_read(front: Site) -> None:
    here = f"http://{PUBLIC}:{front.port}"
    assert Storage(OUTSIDE).read(f"{here}/to/{here}/x") == SECRET


@dataclass
class Names:
    """What `rebinding.example` resolves to at the moment, and how often that was asked."""

    addresses: list[str]
    asked: int = 0

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Answer in the place of the system's resolver, and let nothing be remembered."""
        resolve = socket.getaddrinfo

        def answer(host: str, *more: object, **options: object) -> list:
            if host != "rebinding.example":
                return resolve(host, *more, **options)
            self.asked += 1
            return [entry for address in self.addresses for entry in resolve(address, *more, **options)]

        patch.setattr(socket, "getaddrinfo", answer)
        patch.setattr(aiohttp, "TCPConnector", partial(aiohttp.TCPConnector, use_dns_cache=False))


def a_new_client(name: str) -> StorageConfig:
    """A configuration whose HTTP session no other test has used."""
    return OUTSIDE.model_copy(update={"options": {"client_kwargs": {"headers": {"X-Test": name}}}})


def test_name_that_turns_private_after_its_first_use(front: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names([PUBLIC])
    names.install(monkeypatch)
    storage = Storage(a_new_client("rebinding"))
    url = f"http://rebinding.example:{front.port}/a.tar"
    with site(PRIVATE, front.port) as metadata:
        assert storage.read(url) == SECRET
        assert front.requests
        names.addresses, asked = [PRIVATE], names.asked
        with pytest.raises(UsageError, match="private address"):
            storage.read(url)
        assert metadata.requests == []
    assert names.asked > asked, "the change was met"


def test_name_with_a_dead_public_and_a_private_address(
    front: Site, metadata: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = Names([PUBLIC, PRIVATE])
    names.install(monkeypatch)
    storage = Storage(a_new_client("both").model_copy(update={"retry_seconds": 0}))
    with pytest.raises((UsageError, StorageError)):
        storage.read(f"http://rebinding.example:{metadata.port}/a.tar")
    assert names.asked
    assert metadata.requests == []


def test_private_hosts_by_option(metadata: Site) -> None:
    assert Storage(ANYWHERE).stat(f"http://127.0.0.1:{metadata.port}/a.tar").size == len(SECRET)


PUBLIC_ADDRESSES = ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
OTHER_ADDRESSES = [
    *("127.0.0.1", "127.255.255.254", "::1", "0.0.0.0", "::"),
    *("10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "fc00::1", "fec0::1"),
    *("169.254.169.254", "fe80::1%eth0", "fd00:ec2::254", "168.63.129.16"),
    *("224.0.0.1", "ff02::1", "240.0.0.1", "255.255.255.255", "198.18.0.1", "192.0.2.1", "2001:db8::1"),
    *("::ffff:127.0.0.1", "::127.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1", "64:ff9b:1::808:808"),
    "2001:0:4136:e378:8000:63bf:80ff:fffe",  # Teredo of 127.0.0.1
]


@pytest.mark.parametrize("address", [*PUBLIC_ADDRESSES, *OTHER_ADDRESSES])
def test_addresses_of_the_public_internet(address: str) -> None:
    assert addresses.is_public(address) is (address in PUBLIC_ADDRESSES)
