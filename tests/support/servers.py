"""Servers on loopback: ports, processes, and HTTP servers that misbehave on purpose."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from threading import Event, Lock, Thread

START_SECONDS = 60


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for open_socket in sockets:
            open_socket.bind(("127.0.0.1", 0))
        return [open_socket.getsockname()[1] for open_socket in sockets]


@dataclass(frozen=True)
class Host:
    """Where a server runs.

    Attributes:
        address: that it listens on.
        prefix: what stands before a command that is to run there.
    """

    address: str = "127.0.0.1"
    prefix: tuple[str, ...] = ()

    def reaches(self, endpoint: str) -> bool:
        """Whether a server answers there."""
        if not self.prefix:
            return _answers(endpoint)
        ask = "import sys; from tests.support.servers import HERE; sys.exit(not HERE.reaches(sys.argv[1]))"
        command = [*self.prefix, sys.executable, "-c", ask, endpoint]
        return subprocess.run(command, check=False).returncode == 0


HERE = Host()


@contextmanager
def process(
    command: list[str], folder: Path, endpoint: str, environment: Mapping[str, str], host: Host = HERE
) -> Iterator[None]:
    """Run a server until the end of the block; its log is `folder/log`."""
    env, command = {**os.environ, **environment}, [*host.prefix, *command]
    with (
        open(folder / "log", "wb") as log,
        subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder, env=env) as server,
    ):
        try:
            deadline = time.monotonic() + START_SECONDS
            while not host.reaches(endpoint):
                assert server.poll() is None, f"{command[0]} ended: {(folder / 'log').read_text()[-2000:]}"
                assert time.monotonic() < deadline, f"{command[0]} does not answer"
                time.sleep(0.05)
            yield
        finally:
            server.kill()  # a polite end waits for the connections of this very process


def _answers(endpoint: str) -> bool:
    try:
        with urllib.request.urlopen(endpoint, timeout=5):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return True  # a refusal is an answer
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@dataclass
class Misbehaving:
    """An HTTP server that answers every request alike.

    Attributes:
        endpoint: its URL.
        requests: method and path of every request, in order.
        released: ends the requests that are kept waiting.
    """

    endpoint: str
    requests: list[str] = field(default_factory=list)
    released: Event = field(default_factory=Event)


@contextmanager
def misbehaving(status: int | None) -> Iterator[Misbehaving]:
    """A server that answers with `status` and no body, or never (None)."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self) -> None:
            state.requests.append(f"{self.command} {self.path}")
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if status is None:
                state.released.wait(60)
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_one  # noqa: N815 - names of the protocol

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    with _serving(ThreadingHTTPServer, Handler) as state:
        yield state


@contextmanager
def deaf() -> Iterator[Misbehaving]:
    """A store that holds nothing, and reads no byte of what is uploaded to it."""

    class Server(ThreadingHTTPServer):
        def server_bind(self) -> None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)  # else the kernel reads megabytes
            super().server_bind()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            state.requests.append(f"{self.command} {self.path}")
            state.released.wait(60)
            self.close_connection = True

        def do_GET(self) -> None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST, do_HEAD = do_PUT, do_GET  # noqa: N815 - names of the protocol

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    with _serving(Server, Handler) as state:
        yield state


@contextmanager
def _serving(server_class: type[ThreadingHTTPServer], handler: type[BaseHTTPRequestHandler]) -> Iterator[Misbehaving]:
    """Run such a server."""
    with server_class(("127.0.0.1", 0), handler) as server:
        state = Misbehaving(f"http://127.0.0.1:{server.server_port}")
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield state
        finally:
            state.released.set()
            server.shutdown()
            thread.join()


@dataclass
class Cutter:
    """A proxy that drops connections.

    Attributes:
        endpoint: its URL.
        cuts: how many answers it has cut so far.
    """

    endpoint: str
    cuts: int = 0


@contextmanager
def cutting_proxy(endpoint: str, *, after: int, times: int) -> Iterator[Cutter]:
    """A TCP proxy before `endpoint` that drops connections after `after` bytes of answers, `times` times in all."""
    host, _, port = endpoint.removeprefix("http://").partition(":")
    open_sockets: list[socket.socket] = []

    guard = Lock()

    def cut() -> bool:
        with guard:  # answers to several connections reach the limit at the same moment
            granted = state.cuts < times
            state.cuts += granted
            return granted

    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection((host, int(port))) as server:
                open_sockets.extend((self.request, server))
                questions = Thread(target=_pump, args=(self.request, server))
                questions.start()
                _pump(server, self.request, may_go_on=lambda passed: passed <= after or not cut())
                _hang_up(self.request, server)
                questions.join()

    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as proxy:
        state = Cutter(f"http://127.0.0.1:{proxy.server_address[1]}")
        thread = Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield state
        finally:
            proxy.shutdown()
            _hang_up(*open_sockets)
            thread.join()


def _pump(source: socket.socket, sink: socket.socket, may_go_on: Callable[[int], bool] = lambda _passed: True) -> None:
    """Pass bytes on until one end closes or, asked with the number of bytes so far, `may_go_on` says no."""
    passed = 0
    with suppress(OSError):  # the other direction has hung up
        while data := source.recv(1 << 16):
            passed += len(data)
            if not may_go_on(passed):
                return
            sink.sendall(data)


def _hang_up(*sockets: socket.socket) -> None:
    for open_socket in sockets:
        with suppress(OSError):  # closed already
            open_socket.shutdown(socket.SHUT_RDWR)
