"""Credentials that expire: an endpoint that hands them out, as a container has one, and a door that asks for them.

Real stores refuse with 400 ExpiredToken; `Doorman` does it before a server that takes any credentials (moto).
"""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread

from tests.support.fault_proxy import Fault, Request

SECRET = "secret-of-nobody-CANARY"
TOKEN = "token-of-nobody-CANARY"
CHAIN = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")  # would come first


@dataclass
class Issuer:
    """Hands out credentials.

    Attributes:
        endpoint: its URL.
        claimed_seconds: how long it says that they live.
        busy: how many requests it answers with 429 before it gives any.
        issued: token -> when it was given out.
        asked: how often it was asked.
    """

    endpoint: str
    claimed_seconds: float
    busy: int = 0
    issued: dict[str, float] = field(default_factory=dict)
    asked: int = 0
    lock: Lock = field(default_factory=Lock)

    @property
    def environment(self) -> Mapping[str, str]:
        """By which the provider chain of AWS finds it."""
        return {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{self.endpoint}/credentials"}

    def give(self) -> dict[str, str] | None:
        """New credentials; None if it is busy."""
        with self.lock:
            self.asked += 1
            if self.asked <= self.busy:
                return None
            number = len(self.issued)
            self.issued[f"{TOKEN}-{number}"] = time.monotonic()
            until = datetime.now(UTC) + timedelta(seconds=self.claimed_seconds)
            names = {"AccessKeyId": f"TEMPORARY{number}", "SecretAccessKey": SECRET, "Token": f"{TOKEN}-{number}"}
            return {**names, "Expiration": until.strftime("%Y-%m-%dT%H:%M:%SZ")}


@contextmanager
def issuer(claimed_seconds: float, busy: int = 0) -> Iterator[Issuer]:
    """An endpoint for AWS_CONTAINER_CREDENTIALS_FULL_URI."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            given = state.give()
            body = json.dumps(given or {"message": "slow down"}).encode()
            self.send_response(200 if given else 429)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    with _serving(Handler, claimed_seconds, busy) as state:
        yield state


@contextmanager
def google_issuer(claimed_seconds: float) -> Iterator[Issuer]:
    """A token service for the key of a service account of Google's."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            given = state.give()
            assert given is not None
            token = {"access_token": given["Token"], "expires_in": claimed_seconds, "token_type": "Bearer"}
            body = json.dumps(token).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    with _serving(Handler, claimed_seconds) as state:
        yield state


@contextmanager
def _serving(handler: type[BaseHTTPRequestHandler], claimed_seconds: float, busy: int = 0) -> Iterator[Issuer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        state = Issuer(f"http://127.0.0.1:{server.server_port}", claimed_seconds, busy)
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()


class Doorman:
    """A plan: credentials of an issuer that are older than `seconds`, or unknown, are refused as expired.

    Attributes:
        let_in: the tokens that were good once.
    """

    def __init__(self, given: Issuer, seconds: float) -> None:
        self._issuer, self._seconds = given, seconds
        self.let_in: set[str] = set()

    def __call__(self, request: Request) -> Fault | None:
        token = request.headers.get("X-Amz-Security-Token", "")
        if time.monotonic() - self._issuer.issued.get(token, float("-inf")) > self._seconds:
            return Fault.EXPIRED
        self.let_in.add(token)
        return None
