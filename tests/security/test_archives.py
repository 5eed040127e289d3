"""A shard's names, links and devices never touch the disk: they are keys, or nothing."""

import io
import os
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.shards.manifest import freeze
from pipeline.storage import Storage
from pipeline.tokenize_shard import tokenize_shard
from tests.support.corpora import jpeg
from tests.support.lines import production_line

LINKS = [tarfile.SYMTYPE, tarfile.LNKTYPE]
DEVICES = [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder two floors below `tmp_path`, for names to climb out of."""
    folder = tmp_path / "deep" / "down"
    folder.mkdir(parents=True)
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "kept.jpg").write_bytes(b"kept")
    monkeypatch.chdir(folder)
    return folder


def names(root: Path) -> list[str]:
    """Every regular member's name: each would write, or write through, something outside."""
    return [
        "good.jpg",
        "../../climbed.jpg",
        "./../../climbed-too.jpg",
        f"{root}/absolute.jpg",
        "link/through.jpg",
        f"{root}/target/kept.jpg",
        "./made/folder.jpg",
        "~/home.jpg",
    ]


def hostile_tar(root: Path, *, devices: bool = True) -> bytes:
    """Links out of the folder first, then members that would go through them."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for number, kind in enumerate([*LINKS, *(DEVICES if devices else [])]):
            info = tarfile.TarInfo("link" if kind == tarfile.SYMTYPE else f"special{number}.jpg")
            info.type = kind
            info.linkname = str(root / "target") if kind == tarfile.SYMTYPE else "../../target/kept.jpg"
            tar.addfile(info)
        for number, name in enumerate(names(root)):
            info, data = tarfile.TarInfo(name), jpeg(number)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def tree(root: Path) -> dict[str, bytes | None]:
    """Everything below `root`, links not followed; the content of regular files."""
    found = [path for folder, dirs, files in os.walk(root) for path in (Path(folder, name) for name in dirs + files)]
    return {str(path): path.read_bytes() if path.is_file() and not path.is_symlink() else None for path in found}


def test_archive_is_dangerous_to_those_who_extract_it(here: Path, tmp_path: Path) -> None:
    before = tree(tmp_path)
    with tarfile.open(fileobj=io.BytesIO(hostile_tar(tmp_path, devices=False))) as tar:
        for member in tar:
            if member.type != tarfile.LNKTYPE:
                tar.extract(member, filter="fully_trusted")
    after = tree(tmp_path)
    outside = {"climbed.jpg", "climbed-too.jpg", "absolute.jpg", "target/through.jpg"}
    assert {f"{tmp_path}/{name}" for name in outside} <= after.keys() - before.keys()
    assert after[f"{tmp_path}/target/kept.jpg"] != b"kept"


def test_names_stay_keys_and_nothing_else_is_written(here: Path, tmp_path: Path, tiny_model: Path) -> None:
    shard = tmp_path / "0.tar"
    shard.write_bytes(hostile_tar(tmp_path))
    before = tree(tmp_path)
    with production_line(tiny_model, f"{tmp_path}/out") as line:
        report = tokenize_shard(freeze(Storage(), [str(shard)])[0], line)
    after = tree(tmp_path)
    assert report.counts.tokenized == len(names(tmp_path))
    part = next((tmp_path / "out" / "tokens").iterdir())
    new = {
        str(part),
        f"{tmp_path}/out/qa/{part.name}",
        *(f"{tmp_path}/{name}" for name in ("out", "out/tokens", "out/qa")),
    }
    assert after.keys() - before.keys() == new
    assert before.items() <= after.items()
    keys = pq.read_table(part)["key"].to_pylist()
    assert {"good", "../../climbed", f"{tmp_path}/absolute", "link/through"} <= set(keys)
