"""As much of the Hugging Face Hub's API as reading takes, on loopback: one data set, in memory."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from urllib.parse import parse_qs, unquote, urlsplit

REPO = "tests/images"


@dataclass
class Hub:
    """A running hub.

    Attributes:
        endpoint: its URL.
        files: path in the data set -> content.
        requests: how many came of each kind (`info`, `tree`, `paths-info`, `resolve`).
    """

    endpoint: str
    files: dict[str, bytes] = field(default_factory=dict)
    requests: Counter[str] = field(default_factory=Counter)
    lock: Lock = field(default_factory=Lock)

    def entries(self, paths: list[str]) -> list[dict[str, object]]:
        """What the API tells of files and folders; nothing of those that are not there."""
        return [entry for path in paths if (entry := self._entry(path))]

    def _entry(self, path: str) -> dict[str, object] | None:
        if path in self.files:
            oid = hashlib.sha1(self.files[path]).hexdigest()
            return {"type": "file", "path": path, "size": len(self.files[path]), "oid": oid}
        if any(name.startswith(f"{path}/") for name in self.files):
            return {"type": "directory", "path": path, "oid": "0" * 40}
        return None

    def children(self, folder: str) -> list[str]:
        """The files and folders directly in a folder, "" for the top."""
        prefix = f"{folder}/" if folder else ""
        return sorted(
            {prefix + name.removeprefix(prefix).split("/")[0] for name in self.files if name.startswith(prefix)}
        )


@contextmanager
def hub() -> Iterator[Hub]:
    """A hub whose data set `REPO` is empty and has one revision, `main`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            if path.startswith(f"/datasets/{REPO}/resolve/main/"):
                self._give_range(path.removeprefix(f"/datasets/{REPO}/resolve/main/"))
            elif path.startswith(f"/api/datasets/{REPO}/tree/main"):
                folder = path.removeprefix(f"/api/datasets/{REPO}/tree/main").strip("/")
                found = state.entries(state.children(folder))
                self._answer("tree", 200 if found else 404, found or {})
            else:
                known = path in (f"/api/datasets/{REPO}", f"/api/datasets/{REPO}/revision/main")
                self._answer("info", 200 if known else 404, {"id": REPO, "sha": "0" * 40})

        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self._answer("paths-info", 200, state.entries(form["paths"]))

        def _give_range(self, name: str) -> None:
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            assert found, "a client that asks for all of it at once"
            first, last = int(found[1]), int(found[2])
            content = state.files.get(name)
            if content is None:
                self._answer("resolve", 404, {})
                return
            self._answer("resolve", 206, content[first : last + 1], f"bytes {first}-{last}/{len(content)}")

        def _answer(self, kind: str, status: int, content: object, span: str | None = None) -> None:
            with state.lock:
                state.requests[kind] += 1
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound" if kind == "info" else "EntryNotFound")
            if span:
                self.send_header("Content-Range", span)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state = Hub(f"http://127.0.0.1:{server.server_port}")
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
