"""Drafts on a node's local disk, in folders that whoever comes later can tell to be abandoned.

A folder is locked by the process that drafts in it. The kernel takes the lock away when that process dies, of SIGKILL
too, in whatever container it ran: who can lock a folder knows that its owner is gone. (A process id would not do: it is
given to another process sooner or later, and containers that share a disk have the same ones.) Where the disk knows no
locks, as most network disks, drafts work as well, and nothing is ever taken for abandoned.
"""

import fcntl
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "tokenmill-scratch-"
_NAME = re.compile(re.escape(PREFIX) + "[0-9a-f]{32}")  # nobody else makes such a name


@contextmanager
def draft_folder(root: Path | None = None) -> Iterator[Path]:
    """A new folder under `root` that is gone at the end, or swept some day if this process does not live to see it.

    Args:
        root: on a local disk; made if it is not there; None is the system's temporary folder.

    Raises:
        OSError: there is no room, or no permission.
    """
    folder, lock = _make(root or Path(tempfile.gettempdir()))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
        os.close(lock)


def remove_abandoned(root: Path | None = None) -> list[Path]:
    """Remove the draft folders under `root` whose owners are dead; returns them. `root` is made if it is not there.

    Raises:
        OSError: `root` cannot be made, or read.
    """
    root = root or Path(tempfile.gettempdir())
    root.mkdir(parents=True, exist_ok=True)
    with os.scandir(root) as entries:
        ours = [Path(entry) for entry in entries if _NAME.fullmatch(entry.name)]
    return [folder for folder in ours if _remove_if_abandoned(folder)]


def _make(root: Path) -> tuple[Path, int]:
    """A new folder and the open file that holds its lock."""
    while True:
        folder = root / f"{PREFIX}{uuid.uuid4().hex}"
        folder.mkdir(mode=0o700, parents=True)
        with suppress(FileNotFoundError):  # a sweep came between the two lines, and took it for abandoned
            lock = _open(folder)
            if _is_ours(folder, lock):
                return folder, lock
            os.close(lock)


def _is_ours(folder: Path, lock: int) -> bool:
    """Lock a folder just made; False if a sweep was faster."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # the sweep is at it
        return False
    except OSError:  # no locks here, so no sweep either
        return True
    return folder.exists()


def _remove_if_abandoned(folder: Path) -> bool:
    try:
        lock = _open(folder)
    except OSError:  # gone already; no folder, but a file or a link; or another user's
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)  # what resists is left to the next sweep
    except OSError:  # its owner lives, or the disk knows no locks
        return False
    finally:
        os.close(lock)
    return not folder.exists()


def _open(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
