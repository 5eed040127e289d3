"""A tar of any size that is never anywhere: an S3-speaking server makes its bytes from the offset it is asked for."""

import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

BLOCK = 512  # of a tar
PAYLOAD = 1 << 20  # bytes of each member
STRIDE = BLOCK + PAYLOAD
ETAG = '"synthetic"'


@dataclass(frozen=True)
class SyntheticTar:
    """`samples` members of 1 MiB, each full of its own number."""

    samples: int

    @property
    def size(self) -> int:
        """Of the whole tar, in bytes."""
        return self.samples * STRIDE + 2 * BLOCK

    def read(self, offset: int, size: int) -> bytes:
        """Bytes [offset, offset + size)."""
        pieces, end = [], offset + size
        while offset < end:
            number, inside = divmod(offset, STRIDE)
            if number >= self.samples:
                pieces.append(bytes(end - offset))
                break
            piece = member(number)[inside : inside + end - offset]
            pieces.append(piece)
            offset += len(piece)
        return b"".join(pieces)


def payload(number: int) -> bytes:
    """The content of one member."""
    return number.to_bytes(8, "little") * (PAYLOAD // 8)


@lru_cache(maxsize=32)
def member(number: int) -> bytes:
    """Header and content of one member."""
    info = tarfile.TarInfo(f"{number:09d}.bin")
    info.size = PAYLOAD
    return info.tobuf(tarfile.USTAR_FORMAT) + payload(number)


@contextmanager
def synthetic_store(tar: SyntheticTar) -> Iterator[str]:
    """A server on which every key of every bucket is `tar`; its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_HEAD(self) -> None:
            self._head(200, tar.size)

        def do_GET(self) -> None:
            found = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            assert found, "a client that asks for all of it at once"
            first, last = int(found[1]), min(int(found[2]), tar.size - 1)
            self._head(206, last - first + 1, f"bytes {first}-{last}/{tar.size}")
            for offset in range(first, last + 1, STRIDE):
                self.wfile.write(tar.read(offset, min(STRIDE, last + 1 - offset)))

        def _head(self, status: int, length: int, span: str | None = None) -> None:
            self.send_response_only(status)
            self.send_header("Content-Length", str(length))
            self.send_header("ETag", ETAG)
            self.send_header("Last-Modified", "Sat, 21 Nov 2026 00:00:00 GMT")
            if span:
                self.send_header("Content-Range", span)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
