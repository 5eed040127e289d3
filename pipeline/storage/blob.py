"""The words that the storage rooms share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Blob:
    """One object as it was seen: `size` in bytes, `etag` changes when the content does (None: the store has none)."""

    url: str
    size: int
    etag: str | None

    def same_content(self, other: "Blob") -> bool:
        """Whether nothing speaks against the two being one version of one object."""
        return self.size == other.size and (self.etag == other.etag or None in (self.etag, other.etag))


class ByteStream(Protocol):
    """A sequential stream of bytes."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes, b"" at the end only."""
        ...


class Handle(Protocol):
    """An open object: what a binary file offers to one thread."""

    def seek(self, offset: int, /) -> int: ...
    def read(self, size: int, /) -> bytes: ...
    def close(self) -> None: ...


class Store(Protocol):
    """One kind of store. A call is tried once and lets the client's own exceptions through."""

    def stat(self, url: str) -> Blob: ...
    def list_page(self, folder: str, token: str | None) -> tuple[list[Blob], str | None]: ...
    def glob(self, pattern: str) -> list[Blob]: ...
    def write(self, url: str, data: bytes) -> None: ...
    def delete(self, url: str) -> None: ...
    def open(self, url: str) -> tuple[Blob, Handle]: ...
    def create(self, url: str, source: Path) -> None: ...
    def put(self, url: str, source: Path) -> None: ...
