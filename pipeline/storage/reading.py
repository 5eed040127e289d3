"""Reading one version of an object: by ranges, as a sequence, at random."""

import io
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from pipeline.errors import StorageError
from pipeline.storage.blob import Blob, Handle
from pipeline.storage.failures import answer

BLOCK_BYTES = 8 << 20  # of one request; larger gained nothing on loopback
BLOCKS_AHEAD = 4  # requests in flight for one stream: one connection to S3 gives some 80 MB/s, whatever the host's link

Fetch = Callable[[int, int], bytes]  # (offset, size) -> exactly `size` bytes


class Replaced(StorageError):
    """The object is not the version any more that is being read."""


class Version:
    """Ranges of exactly one version of an object, for several threads at once.

    Attributes:
        blob: the version, as it was when it was opened.
    """

    def __init__(self, open_handle: Callable[[], tuple[Blob, Handle]]) -> None:
        self._open = open_handle
        self.blob, handle = open_handle()
        self._idle = [handle]  # append and pop are atomic; a handle serves one thread at a time

    def read(self, offset: int, size: int) -> bytes:
        """Bytes [offset, offset + size).

        Raises:
            Replaced: the object has changed.
            StorageError: fewer bytes came.
        """
        try:
            handle = self._idle.pop()
        except IndexError:
            handle = self._reopen()
        try:
            handle.seek(offset)
            data = handle.read(size)
        except Exception as error:
            handle.close()
            if answer(error)[0] in (412, 416):  # If-Match failed, or the range lies behind the end
                raise self._replaced() from error
            raise
        if len(data) != size:
            handle.close()
            self._reopen().close()
            raise StorageError(f"{self.blob.url}: {len(data)} of {size} bytes at offset {offset}: the body was cut")
        self._idle.append(handle)
        return data

    def close(self) -> None:
        """Close what is open; no thread may be reading."""
        while self._idle:
            self._idle.pop().close()

    def _reopen(self) -> Handle:
        blob, handle = self._open()
        if not blob.same_content(self.blob):
            handle.close()
            raise self._replaced()
        return handle

    def _replaced(self) -> Replaced:
        return Replaced(f"{self.blob.url}: the object changed while it was read")


class ReadAhead:
    """A sequential stream, fetched in parallel ranges: at most `BLOCKS_AHEAD` blocks before the one being read."""

    def __init__(self, fetch: Fetch, size: int) -> None:
        self._fetch, self._size, self._next = fetch, size, 0
        self._ahead: deque[Future[bytes]] = deque()
        self._block = memoryview(b"")
        self._pool = ThreadPoolExecutor(BLOCKS_AHEAD, thread_name_prefix="fetch")

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes, b"" at the end only; an error of a block is raised again by every later call."""
        if not self._block:
            self._submit()
            if not self._ahead:
                return b""
            self._block = memoryview(self._ahead[0].result())
            self._ahead.popleft()
            self._submit()
        data, self._block = self._block[:size], self._block[size:]
        return bytes(data)

    def close(self) -> None:
        """Drop what was not read, and wait for the requests in flight."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self) -> None:
        while self._next < self._size and len(self._ahead) < BLOCKS_AHEAD:
            size = min(BLOCK_BYTES, self._size - self._next)
            self._ahead.append(self._pool.submit(self._fetch, self._next, size))
            self._next += size


class RandomFile(io.RawIOBase):
    """A seekable read-only file; each read is one request of exactly the bytes asked for."""

    def __init__(self, fetch: Fetch, size: int) -> None:
        self._fetch, self._size, self._at = fetch, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        rest = max(0, self._size - self._at)
        size = rest if size is None or size < 0 else min(size, rest)
        data = self._fetch(self._at, size) if size else b""
        self._at += size
        return data

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any, /) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
