"""As much of the Hugging Face Hub's API as a run takes, on loopback: one data set with one branch, in memory.

A write is a commit: the client asks how each file is to be sent (`preupload`), sends large ones ahead by their sha256
(the batch API of git LFS, "basic" transfer), and then one document with the small ones in it and the names of the large
ones. The real Hub would have large files sent by the Xet protocol, which only its own client in Rust speaks.
"""

import base64
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from urllib.parse import parse_qs, unquote, urlsplit

REPO = "tests/images"  # also the name of a bucket, which is another kind of store
BUCKET = {"id": REPO, "private": False, "createdAt": "2026-11-21T00:00:00.000Z", "size": 0, "totalFiles": 0}


@dataclass
class Hub:
    """A running hub.

    Attributes:
        endpoint: its URL.
        files: path in the data set -> content.
        large: so many bytes and more are sent ahead.
        objects: sha256 -> content of what was sent ahead.
        requests: how many came of each kind (`info`, `tree`, `commit`, ...).
        tokens: with which they came.
    """

    endpoint: str
    files: dict[str, bytes] = field(default_factory=dict)
    large: float = math.inf
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: Counter[str] = field(default_factory=Counter)
    tokens: set[str] = field(default_factory=set)
    lock: Lock = field(default_factory=Lock)

    def entries(self, paths: list[str]) -> list[dict[str, object]]:
        """What the API tells of files and folders; nothing of those that are not there."""
        return [entry for path in paths if (entry := self._entry(path))]

    def _entry(self, path: str) -> dict[str, object] | None:
        if path in self.files:
            return {"type": "file", "path": path, "size": len(self.files[path]), "oid": _oid(self.files[path])}
        if any(name.startswith(f"{path}/") for name in self.files):
            return {"type": "directory", "path": path, "oid": "0" * 40}
        return None

    def children(self, folder: str) -> list[str]:
        """The files and folders directly in a folder, "" for the top."""
        prefix = f"{folder}/" if folder else ""
        return sorted(
            {prefix + name.removeprefix(prefix).split("/")[0] for name in self.files if name.startswith(prefix)}
        )

    def listing(self, folder: str, *, below: bool) -> list[dict[str, object]]:
        """What lies directly in a folder, or anywhere below it."""
        prefix = f"{folder}/" if folder else ""
        return self.entries(
            sorted(name for name in self.files if name.startswith(prefix)) if below else self.children(folder)
        )

    def modes(self, asked: list[dict]) -> dict[str, object]:
        """How each of some files is to be sent, and what lies under its name."""
        return {"files": [self._mode(file["path"], file["size"]) for file in asked]}

    def _mode(self, path: str, size: int) -> dict[str, object]:
        known = {"oid": _oid(self.files[path])} if path in self.files else {}
        return {"path": path, "uploadMode": "lfs" if size >= self.large else "regular", "shouldIgnore": False, **known}

    def places(self, asked: list[dict]) -> dict[str, object]:
        """Where large files are to be sent; nothing for those that are here."""
        actions = {one["oid"]: {"upload": {"href": f"{self.endpoint}/lfs/{one['oid']}"}} for one in asked}
        return {
            "objects": [
                {**one, **({} if one["oid"] in self.objects else {"actions": actions[one["oid"]]})} for one in asked
            ]
        }

    def commit(self, lines: list[dict]) -> int:
        """Do what a commit says, all of it or nothing; the status of the answer."""
        with self.lock:
            files = dict(self.files)
            for line in lines:
                kind, value = line["key"], line["value"]
                if kind == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif kind == "lfsFile":
                    files[value["path"]] = self.objects[value["oid"]]
                elif kind == "deletedFile" and files.pop(value["path"], None) is None:
                    return 404
            self.files = files
        return 200


def _oid(content: bytes) -> str:
    """Git's name for a file's content."""
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def _done(endpoint: str) -> dict[str, str]:
    """The answer to a commit."""
    return {"commitUrl": f"{endpoint}/datasets/{REPO}/commit/{'0' * 40}", "commitOid": "0" * 40}


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
                below = parse_qs(urlsplit(self.path).query).get("recursive", ["False"])[0].lower() == "true"
                found = state.listing(folder, below=below)
                there = bool(found) or not folder
                self._answer("tree", 200 if there else 404, found if there else {})
            elif path == f"/api/buckets/{REPO}":
                self._answer("bucket", 200, BUCKET)
            else:
                known = path in (f"/api/datasets/{REPO}", f"/api/datasets/{REPO}/revision/main")
                self._answer("info", 200 if known else 404, {"id": REPO, "sha": "0" * 40})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            match urlsplit(self.path).path.removeprefix(f"/api/datasets/{REPO}"):
                case "/preupload/main":
                    self._answer("preupload", 200, state.modes(json.loads(body)["files"]))
                case "/commit/main":
                    status = state.commit([json.loads(line) for line in body.splitlines()])
                    self._answer("commit", status, _done(state.endpoint))
                case "/api/repos/create":
                    self._answer("create", 200, {"url": f"{state.endpoint}/datasets/{REPO}"})
                case "/api/validate-yaml":
                    self._answer("validate", 200, {"errors": [], "warnings": []})
                case path if path == f"/datasets/{REPO}.git/info/lfs/objects/batch":
                    self._answer("batch", 200, state.places(json.loads(body)["objects"]))
                case _:
                    self._answer("paths-info", 200, state.entries(parse_qs(body.decode())["paths"]))

        def do_PUT(self) -> None:
            body, name = self.rfile.read(int(self.headers["Content-Length"])), self.path.rpartition("/")[2]
            whole = hashlib.sha256(body).hexdigest() == name
            if whole:
                state.objects[name] = body
            self._answer("lfs", 200 if whole else 400, {})

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
                state.tokens.add(self.headers.get("Authorization", ""))
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
