"""Files: plain system calls, because nothing else offers `link(2)` and links that lead nowhere must not go unseen."""

import errno
import glob
import os
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import StoreRefused, UsageError
from pipeline.storage.blob import Blob
from pipeline.urls import local_path

COPY_BYTES = 1 << 20
NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class LocalDisk:
    """A `Store` of local or mounted files. A blob's ETag is the time of its last change, in nanoseconds."""

    def stat(self, url: str) -> Blob:
        path = _path(url)
        return _blob(path, path.stat())

    def list_page(self, folder: str, token: str | None) -> tuple[list[Blob], str | None]:  # noqa: ARG002 - one page
        path = _path(folder)
        try:
            names = os.listdir(path)
        except (FileNotFoundError, NotADirectoryError):
            return [], None
        return list(_blobs(str(path / name) for name in names)), None

    def glob(self, pattern: str) -> list[Blob]:
        return list(_blobs(glob.iglob(str(_path(pattern)), recursive=True, include_hidden=True)))

    def write(self, url: str, data: bytes) -> None:
        target = _path(url)
        with _sibling(target) as temporary:
            with open(temporary, "xb") as file:
                file.write(data)
                _to_disk(file)
            temporary.replace(target)

    def delete(self, url: str) -> None:
        _path(url).unlink()

    def open(self, url: str) -> tuple[Blob, BinaryIO]:
        path = _path(url)
        file = open(path, "rb", buffering=0)  # noqa: SIM115 - the caller closes it
        return _blob(path, os.fstat(file.fileno())), file

    def create(self, url: str, source: Path) -> None:
        target = _path(url)
        with _copied_nameless(source, target) as (copy, folder):
            try:
                os.link(copy, target, src_dir_fd=folder)
            except OSError as error:
                if error.errno not in NO_HARD_LINKS:
                    raise
                raise StoreRefused(f"{target}: this file system has no hard links, so no create-if-absent") from error

    def put(self, url: str, source: Path) -> None:
        target = _path(url)
        with _copied(source, target) as temporary:
            temporary.replace(target)


def _path(url: str) -> Path:
    path = local_path(url)
    assert path is not None, f"not a local URL: {url}"
    return path


def _blob(path: Path, status: os.stat_result) -> Blob:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return Blob(f"file://{path}", status.st_size, str(status.st_mtime_ns))


def _blobs(paths: Iterable[str]) -> Iterator[Blob]:
    """The files among `paths`. A link that leads nowhere is an error: it stands for data that is missing."""
    for path in paths:
        try:
            status = os.stat(path)
        except FileNotFoundError:
            if os.path.islink(path):
                raise
            continue  # deleted since it was listed
        if stat.S_ISREG(status.st_mode):
            yield _blob(Path(path), status)


@contextmanager
def _copied_nameless(source: Path, target: Path) -> Iterator[tuple[Path, int]]:
    """A copy of `source` on the disk of `target`, to be linked, and a handle of its folder.

    On Linux the copy has no name until it gets the final one, so a process that is killed here leaves nothing. Systems
    and disks that know no such files get a named copy.
    """
    _make_folder(target.parent)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        try:
            handle = os.open(target.parent, os.O_TMPFILE | os.O_WRONLY, 0o666)
        except (AttributeError, OSError):
            with _copied(source, target) as temporary:
                yield temporary, folder
            return
        with open(handle, "wb") as file, open(source, "rb") as original:
            shutil.copyfileobj(original, file, COPY_BYTES)
            _to_disk(file)
            yield Path(f"/proc/self/fd/{handle}"), folder  # with `src_dir_fd` given, os.link follows it to the file
    finally:
        os.close(folder)


@contextmanager
def _copied(source: Path, target: Path) -> Iterator[Path]:
    """A copy of `source` beside `target`, safe on the disk."""
    with _sibling(target) as temporary:
        shutil.copyfile(source, temporary)
        with open(temporary, "rb") as file:
            _to_disk(file)
        yield temporary


@contextmanager
def _sibling(target: Path) -> Iterator[Path]:
    """A free name beside `target`, with nothing under it afterwards. No glob of shards or parts matches it."""
    _make_folder(target.parent)
    temporary = target.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"{folder}: is no folder, so nothing can be written into it") from error


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
