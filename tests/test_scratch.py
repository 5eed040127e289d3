"""Draft folders: gone at the end, swept when their owner was killed, never touched while it lives."""

import errno
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pipeline import scratch
from pipeline.scratch import PREFIX, draft_folder, remove_abandoned
from tests.support.commands import ROOT

OWNER = """
import subprocess, sys
from pathlib import Path
from pipeline.scratch import draft_folder
with draft_folder(Path(sys.argv[1])) as folder:
    (folder / "draft.parquet").write_bytes(bytes(1000))
    subprocess.Popen(["cat"])  # outlives this process: it reads the same stdin
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_folder_of_a_killed_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OWNER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as owner:
        assert owner.stdout is not None
        folder = Path(owner.stdout.readline().strip())
        assert remove_abandoned(tmp_path) == [], "its owner lives"
        assert (folder / "draft.parquet").stat().st_size == 1000
        owner.kill()
        owner.wait()
        assert remove_abandoned(tmp_path) == [folder], "its owner is dead, though a child of it lives"
    assert list(tmp_path.iterdir()) == []


def test_folder_is_gone_after_use_and_after_a_failure(tmp_path: Path) -> None:
    root = tmp_path / "not" / "yet"
    for names in (["draft"], ["draft", "no such folder/draft"]):
        with suppress(FileNotFoundError), draft_folder(root) as folder:
            assert folder.parent == root
            for name in names:
                (folder / name).write_bytes(b"x")
        assert list(root.iterdir()) == []


def test_nothing_else_is_swept(tmp_path: Path) -> None:
    name = PREFIX + "0" * 32
    (tmp_path / name[:-1]).mkdir()
    (tmp_path / "tokenmill-notes").mkdir()
    (tmp_path / (PREFIX + "1" * 32)).write_bytes(b"a file")
    (tmp_path / (PREFIX + "2" * 32)).symlink_to(tmp_path / "tokenmill-notes")
    (tmp_path / name).mkdir()
    assert remove_abandoned(tmp_path) == [tmp_path / name]
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("before", ["_open", "_is_ours"])
def test_sweep_that_comes_before_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str) -> None:
    step, swept = getattr(scratch, before), []

    def late(*arguments: Any) -> Any:
        monkeypatch.setattr(scratch, before, step)
        swept.extend(remove_abandoned(tmp_path))
        return step(*arguments)

    monkeypatch.setattr(scratch, before, late)
    with draft_folder(tmp_path) as folder:
        assert len(swept) == 1
        assert folder not in swept
        assert folder.exists()


def test_disk_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_lock: int, _kind: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with draft_folder(tmp_path) as folder:
        assert remove_abandoned(tmp_path) == []
        assert folder.exists()
    assert not folder.exists()


def test_sweeps_beside_many_owners(tmp_path: Path) -> None:
    over, removed = threading.Event(), []

    def sweep() -> None:
        while not over.is_set():
            removed.extend(remove_abandoned(tmp_path))

    def draft(number: int) -> str:
        with draft_folder(tmp_path) as folder:
            (folder / "draft").write_text(str(number))
            return (folder / "draft").read_text()

    sweeps = [threading.Thread(target=sweep) for _ in range(2)]
    for thread in sweeps:
        thread.start()
    with ThreadPoolExecutor(4) as pool:
        drafts = [pool.submit(draft, number) for number in range(400)]
    over.set()
    for thread in sweeps:
        thread.join()
    assert [one.result() for one in drafts] == [str(number) for number in range(400)]
    assert list(tmp_path.iterdir()) == []


def test_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(OSError, match="x"), draft_folder(tmp_path / "x"):
        pass
