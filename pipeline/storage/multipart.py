"""S3's upload in parts, for files that are too large for one PUT: each step is tried again by itself.

The condition stands on the completion, so nothing can be seen before, and a rival that was first is not touched. What
cannot be completed is aborted. As soon as the name is taken, every unfinished upload to it is in vain: those of killed
processes, those whose acknowledgement was lost, and those of slower rivals are swept.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from pipeline.errors import AlreadyExists, NotFound, StorageError, TokenmillError

T = TypeVar("T")

# Up to here one conditional PUT: fewer stores honour the condition on a completion, among racers above all, and a PUT
# leaves nothing behind. S3 takes 5 GiB in one, Cloudflare's R2 a little less.
ONE_PUT_BYTES = 4 << 30
PART_BYTES = 64 << 20  # held in memory, one at a time; S3 takes 10,000 parts of at least 5 MiB (but for the last)


class PartStore(Protocol):
    """The steps of an upload; each is tried once."""

    def begin(self, url: str) -> str: ...
    def send_part(self, url: str, upload: str, number: int, data: bytes) -> str: ...
    def complete(self, url: str, upload: str, tags: list[str], *, if_absent: bool) -> None: ...
    def abort(self, url: str, upload: str) -> None: ...
    def unfinished(self, url: str) -> list[str]: ...


class Call(Protocol):
    """Runs one step with the retry policy."""

    def __call__(self, step: Callable[[], T], /) -> T: ...


def send(store: PartStore, call: Call, url: str, source: Path, *, if_absent: bool) -> None:
    """Upload `source` in parts and make it visible as `url` in one step; on any error nothing is left.

    Raises:
        AlreadyExists: `if_absent` is set and the name is taken.
        StorageError: the outcome is unknown.
    """
    upload = call(partial(store.begin, url))
    try:
        tags = [call(partial(store.send_part, url, upload, number, data)) for number, data in _pieces(source)]
        call(partial(store.complete, url, upload, tags, if_absent=if_absent))
        _sweep(store, call, url)
    except BaseException as error:
        with suppress(TokenmillError):  # the error at hand tells more
            call(partial(store.abort, url, upload))
        if isinstance(error, AlreadyExists):
            _sweep(store, call, url)
        if isinstance(error, NotFound):
            raise StorageError(f"{url}: the upload is gone: completed without an answer, or swept away") from error
        raise


def _sweep(store: PartStore, call: Call, url: str) -> None:
    """Abort the uploads to a name that is taken."""
    with suppress(TokenmillError):  # the object is there; a lifecycle rule may do what this could not
        for upload in call(partial(store.unfinished, url)):
            call(partial(store.abort, url, upload))


def _pieces(source: Path) -> Iterator[tuple[int, bytes]]:
    """The file's parts, numbered from 1; an empty file has one."""
    with open(source, "rb") as file:
        yield 1, file.read(PART_BYTES)
        yield from enumerate(iter(lambda: file.read(PART_BYTES), b""), 2)
