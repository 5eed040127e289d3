"""An HTTP proxy on loopback that breaks what passes through it: by kind of request, by chance or for a while, counted.

    client -> FaultProxy -> a real S3 server

Headers pass as they are, `Host` too, so that signatures stay valid. A plan decides for each request which fault strikes
it, if any; the proxy carries it out and counts it when it has really happened.
"""

import http.client
import math
import random
import re
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from urllib.parse import parse_qs, urlsplit

HOP_BY_HOP = ("connection", "keep-alive", "expect", "transfer-encoding")
SILENCE_SECONDS = 60.0  # after which a stalled connection ends by itself
NO_SUCH_VERSION = '"00000000000000000000000000000000"'


class Kind(StrEnum):
    """What a request asks for."""

    RANGE = "ranged GET"
    GET = "GET"
    LIST = "LIST"
    HEAD = "HEAD"
    PUT = "PUT"
    POST = "POST"  # of a multipart upload
    DELETE = "DELETE"


class Fault(StrEnum):
    """What happens to a request."""

    INTERNAL = "500"
    SLOW_DOWN = "503 SlowDown"
    TOO_MANY = "429"
    RESET = "connection reset before the store saw the request"
    LOST = "done by the store, answer lost"
    STALL = "silent connection"
    CUT = "body cut in the middle"
    SHORT = "well-formed body, shorter than asked"
    VERSION = "another ETag"
    EXPIRED = "400 ExpiredToken"
    TAKEN = "412"
    FORBIDDEN = "403"
    UNAUTHORIZED = "401"


REFUSALS = {
    Fault.INTERNAL: (500, "InternalError"),
    Fault.SLOW_DOWN: (503, "SlowDown"),
    Fault.TOO_MANY: (429, "TooManyRequests"),
    Fault.EXPIRED: (400, "ExpiredToken"),
    Fault.TAKEN: (412, "PreconditionFailed"),
    Fault.FORBIDDEN: (403, "AccessDenied"),
    Fault.UNAUTHORIZED: (401, "Unauthorized"),
}
_ALWAYS = (Fault.INTERNAL, Fault.SLOW_DOWN, Fault.TOO_MANY, Fault.RESET, Fault.LOST, Fault.STALL)
POSSIBLE: dict[Kind, tuple[Fault, ...]] = {
    Kind.RANGE: (*_ALWAYS, Fault.CUT, Fault.SHORT, Fault.VERSION),
    Kind.GET: (*_ALWAYS, Fault.CUT),
    Kind.LIST: (*_ALWAYS, Fault.CUT),
    Kind.HEAD: (*_ALWAYS, Fault.VERSION),
    Kind.PUT: _ALWAYS,
    Kind.POST: _ALWAYS,
    Kind.DELETE: _ALWAYS,
}
HOSTS = Counter(fault for faults in POSSIBLE.values() for fault in faults)  # fault -> how many kinds it can strike


@dataclass(frozen=True)
class Request:
    """What a plan may look at."""

    kind: Kind
    path: str
    headers: http.client.HTTPMessage
    body: bytes


Plan = Callable[[Request], Fault | None]


def nothing(_request: Request) -> None:
    """The plan of a good day."""


class Chance:
    """A plan: of each kind of request a share of `rate` is struck, evenly; the rarest possible fault is next.

    Evenly, because a short run must meet every fault, whatever the order of its threads; `seed` moves the beginning.
    """

    def __init__(self, rate: float, seed: int = 0) -> None:
        self._rate, self._lock = rate, Lock()
        chance = random.Random(seed)
        self._due = {kind: chance.random() for kind in Kind}
        self._dealt: Counter[Fault] = Counter()

    def __call__(self, request: Request) -> Fault | None:
        with self._lock:
            self._due[request.kind] += self._rate
            if self._due[request.kind] < 1:
                return None
            self._due[request.kind] -= 1
            fault = min(POSSIBLE[request.kind], key=lambda fault: (self._dealt[fault], HOSTS[fault]))
            self._dealt[fault] += 1
            return fault


class Outage:
    """A plan: after `requests` of them, nothing works for `seconds`."""

    FACES = (Fault.INTERNAL, Fault.SLOW_DOWN, Fault.RESET)

    def __init__(self, seconds: float, requests: int) -> None:
        self._seconds, self._left, self._ends, self._lock = seconds, requests, math.inf, Lock()

    def __call__(self, request: Request) -> Fault | None:
        with self._lock:
            self._left -= 1
            if self._left == 0:
                self._ends = time.monotonic() + self._seconds
            struck = self._left <= 0 and time.monotonic() < self._ends
            return self.FACES[-self._left % len(self.FACES)] if struck else None


@dataclass
class FaultProxy:
    """A running proxy.

    Attributes:
        endpoint: its URL.
        plan: what strikes whom; may be exchanged at any time.
        faults: how often each fault has happened.
        struck: how often each kind of request was struck.
        requests: how many requests came, of each kind.
    """

    endpoint: str
    plan: Plan = nothing
    faults: Counter[Fault] = field(default_factory=Counter)
    struck: Counter[Kind] = field(default_factory=Counter)
    requests: Counter[Kind] = field(default_factory=Counter)
    lock: Lock = field(default_factory=Lock)

    def happened(self, kind: Kind, fault: Fault) -> None:
        """Count a fault."""
        with self.lock:
            self.faults[fault] += 1
            self.struck[kind] += 1


@contextmanager
def fault_proxy(endpoint: str, plan: Plan = nothing) -> Iterator[FaultProxy]:
    """A proxy before the HTTP server `endpoint`."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.proxy = FaultProxy(f"http://127.0.0.1:{server.server_port}", plan)
        server.upstream = endpoint.removeprefix("http://")
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.proxy
        finally:
            server.shutdown()
            server.hang_up()
            thread.join()


class _Server(ThreadingHTTPServer):
    """Knows its open connections, so that none outlives it."""

    request_queue_size = 64
    proxy: FaultProxy
    upstream: str

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self._open: set[socket.socket] = set()

    def process_request(self, request: socket.socket, client_address: object) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """End every connection."""
        for connection in list(self._open):
            with suppress(OSError):  # closed already
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: that clients hang up is part of the game."""


class _Handler(BaseHTTPRequestHandler):
    """One connection of a client, with one connection to the store behind it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def handle(self) -> None:
        self._store = http.client.HTTPConnection(self.server.upstream, timeout=SILENCE_SECONDS)
        try:
            super().handle()
        finally:
            self._store.close()

    def handle_one(self) -> None:
        """One request."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kind, proxy = kind_of(self.command, self.path, self.headers), self.server.proxy
        with proxy.lock:
            proxy.requests[kind] += 1
        fault = proxy.plan(Request(kind, self.path, self.headers, body))
        if fault in REFUSALS:
            self._refuse(*REFUSALS[fault])
        elif fault is Fault.RESET:
            self._reset()
        else:
            answer = self._forward(body)
            data = answer.read()
            if fault is not None:
                self._break(fault, answer, data)
            else:
                self._pass_on(answer, data, len(data))
        if fault is not None:
            proxy.happened(kind, fault)
        if fault is Fault.STALL:
            self._wait_for_the_client_to_hang_up()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_one  # noqa: N815 - names of the protocol

    def _break(self, fault: Fault, answer: http.client.HTTPResponse, data: bytes) -> None:
        half = len(data) // 2
        if fault is Fault.LOST:
            self._reset()
        elif fault is Fault.VERSION:
            self._pass_on(answer, data, len(data), {"etag": NO_SUCH_VERSION})
        elif fault is Fault.SHORT:
            self._pass_on(answer, data[:half], half, {"content-range": _shorter(answer, half)})
        else:  # STALL and CUT
            if data:
                self._pass_on(answer, data[:half], len(data))
            self.close_connection = True

    def _forward(self, body: bytes) -> http.client.HTTPResponse:
        self._store.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in HOP_BY_HOP:
                self._store.putheader(name, value)
        self._store.endheaders(body or None)
        return self._store.getresponse()

    def _pass_on(
        self, answer: http.client.HTTPResponse, data: bytes, promised: int, changes: dict[str, str] | None = None
    ) -> None:
        """The answer with `data` as its body; `promised` is the length in its head."""
        self.send_response_only(answer.status, answer.reason)
        headers = {name.lower(): value for name, value in answer.getheaders()} | (changes or {})
        if self.command != "HEAD":
            headers["content-length"] = str(promised)
        for name, value in headers.items():
            if name not in HOP_BY_HOP:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>on purpose</Message></Error>".encode()
        body = b"" if self.command == "HEAD" else text
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _reset(self) -> None:
        """End the connection by RST, as a host does that has forgotten it."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def _wait_for_the_client_to_hang_up(self) -> None:
        self.wfile.flush()
        self.connection.settimeout(SILENCE_SECONDS)
        with suppress(OSError):
            self.connection.recv(1)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


def kind_of(method: str, path: str, headers: http.client.HTTPMessage) -> Kind:
    """What a request asks for."""
    if method != "GET":
        return Kind(method)
    if "Range" in headers or "x-ms-range" in headers:
        return Kind.RANGE
    return Kind.LIST if parse_qs(urlsplit(path).query).keys() & {"list-type", "prefix"} else Kind.GET


def _shorter(answer: http.client.HTTPResponse, size: int) -> str:
    """The Content-Range of an answer, for its first `size` bytes."""
    found = re.match(r"bytes (\d+)-\d+/(\d+)", answer.getheader("Content-Range", ""))
    assert found, "an answer to a ranged GET tells its range"
    start = int(found[1])
    return f"bytes {start}-{start + size - 1}/{found[2]}"
