"""Disks that are full or cannot be written: a named failure, nothing left behind, and on it goes when there is room."""

import errno
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.chaos.ground import FULL, LONGEST, ONE_ACTOR, STRETCH, Ground, undisturbed_run
from tests.support.commands import last_json, tokenmill, wait_until
from tests.support.corpora import sample, write_shard
from tests.support.faults import ALWAYS, Fault, Faults

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3 * LONGEST)]
PAGE = 4096  # bytes: the least that a file takes on a tmpfs
QUICK = [ONE_ACTOR, "limits.max_infra_failures=1", "storage.retry_seconds=0.2"]
NO_SPACE, READ_ONLY = os.strerror(errno.ENOSPC), os.strerror(errno.EROFS)


class SmallDisk:
    """A tmpfs of 4 MB, mounted at `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._filler = folder, folder / "filler"
        folder.mkdir()
        self._mount("size=4m")

    def leave(self, pages: int) -> None:
        """Fill it so that only so many pages are free."""
        self._filler.unlink(missing_ok=True)
        free = os.statvfs(self.folder).f_bavail
        self._filler.write_bytes(b"\0" * PAGE * (free - pages))

    def empty(self) -> None:
        """Take the filler away."""
        self._filler.unlink()

    def set_read_only(self, read_only: bool) -> None:
        """Refuse all writes, or allow them again."""
        self._mount("remount,ro" if read_only else "remount,rw")

    def unmount(self) -> None:
        """Make it vanish, with all that is on it."""
        subprocess.run(["umount", "--lazy", self.folder], check=True)

    def _mount(self, options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", self.folder], check=True, capture_output=True)


def can_mount() -> bool:
    """Whether this user may mount; without that, faults that raise ENOSPC stand in for a full disk."""
    probe = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return shutil.which(probe[0]) is not None and not subprocess.run(probe, capture_output=True, check=False).returncode


MOUNTABLE = can_mount()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A small disk."""
    disk = SmallDisk(tmp_path / "disk")
    yield disk
    disk.unmount()


@pytest.fixture(scope="module")
def bulky(undisturbed: Ground, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """3 shards whose sidecars do not compress, so that their parts are large: 0.6 MB."""
    folder = tmp_path_factory.mktemp("bulky")
    (folder / "in").mkdir()
    for shard in range(3):
        samples = {
            f"{shard}-{index}": sample(shard, index) | {"txt": os.urandom(30_000).hex().encode()} for index in range(20)
        }
        write_shard(folder / "in" / f"{shard:05d}.tar", samples)
    return undisturbed_run(undisturbed.cluster, undisturbed.faults, folder / "in", undisturbed.model, folder / "out")


def litter(output: Path) -> list[str]:
    """What lies in an output and has no name of the contract."""
    there = [str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()]
    known = (
        r"filler|job.json|manifest.parquet|(tokens|qa)/\d{5}-\w{12}.parquet|rejects.parquet|summary.json|README.md|"
        r"report/(index.html|report.json|events.json)|_SUCCESS"
    )
    for evidence in output.glob("qa/*.parquet"):
        pq.read_table(evidence)  # it may be there before its part, but whole
    return [name for name in there if not re.fullmatch(known, name)]


if FULL or not MOUNTABLE:

    def test_scratch_full(ground: Ground, tmp_path: Path, fired: Counter[str]) -> None:
        ground.faults.plan(
            *(Fault(point="before_write", action="full", shard=f"0000{n}-*", times=ALWAYS) for n in (3, 7))
        )
        with ground.watched(tmp_path):
            result = ground.run(tmp_path, *QUICK, "limits.max_infra_failures=2", "--json")
            fired.update(ground.faults.fired())
            assert fired == {"full at before_write": 4}, "two shards, two attempts each"
            assert result.returncode == 3, result.stderr
            given_up = last_json(result)["quarantined"]
            assert [(bad["shard"][-9:], bad["reason"]) for bad in given_up] == [
                ("00003.tar", "local_disk"),
                ("00007.tar", "local_disk"),
            ]
            assert all(NO_SPACE in bad["message"] for bad in given_up)
            assert litter(tmp_path) == []
            ground.faults.plan()
            assert ground.run(tmp_path, "--retry-quarantined").returncode == 0


if MOUNTABLE:

    def test_small_scratch_disk_under_a_local_ray(
        bulky: Ground, tmp_path: Path, disk: SmallDisk, fired: Counter[str]
    ) -> None:
        faults, output = Faults(tmp_path), tmp_path / "out"
        settings = ["--set", "image.size=32", *(word for quick in QUICK for word in ("--set", quick))]
        command = ["run", "--shards", bulky.corpus, "--model", bulky.model, "--output", output, *settings]
        env = {"TMPDIR": str(disk.folder), "RAY_TMPDIR": "/tmp"} | faults.environment
        disk.leave(100)
        with bulky.watched(output):
            result = tokenmill(*command, "--json", **env)
            assert result.returncode == 3, result.stderr
            reasons = [(bad["reason"], NO_SPACE in bad["message"]) for bad in last_json(result)["quarantined"]]
            assert reasons == [("local_disk", True)] * 3
            fired["full scratch disk"] += len(reasons)
            assert [path.name for path in disk.folder.iterdir()] == ["filler"]
            disk.empty()
            assert tokenmill(*command, "--retry-quarantined", **env).returncode == 0
        assert not list(disk.folder.iterdir())

    def test_output_full_at_every_write(bulky: Ground, disk: SmallDisk, fired: Counter[str]) -> None:
        bulky.calm()
        with bulky.watched(disk.folder):
            for free in range(10) if FULL else (0, 4):
                disk.leave(free)
                result = bulky.run(disk.folder, *QUICK, "--retry-quarantined")
                assert result.returncode in (1, 3), result.stderr
                assert NO_SPACE in result.stderr, "the failure has a name"
                assert litter(disk.folder) == []
                fired["full OUTPUT"] += 1
            disk.empty()
            assert bulky.run(disk.folder, ONE_ACTOR, "--retry-quarantined").returncode == 0

    def test_output_read_only_from_the_start_and_in_the_middle(
        bulky: Ground, disk: SmallDisk, fired: Counter[str]
    ) -> None:
        bulky.calm()
        with bulky.watched(disk.folder):
            disk.set_read_only(True)
            refused = bulky.run(disk.folder, ONE_ACTOR)
            assert refused.returncode in (1, 2), refused.stderr
            assert READ_ONLY in refused.stderr
            disk.set_read_only(False)
            bulky.faults.plan(stretch=3 * STRETCH)
            process = bulky.start(disk.folder, *QUICK)
            wait_until(lambda: any(disk.folder.glob("tokens/*.parquet")), process)
            disk.set_read_only(True)
            said, _ = process.communicate(timeout=LONGEST)
            assert process.returncode == 1, said
            assert READ_ONLY in said
            disk.set_read_only(False)
            fired["read-only OUTPUT"] += 2
            assert litter(disk.folder) == []
            bulky.faults.plan()
            assert bulky.run(disk.folder, ONE_ACTOR, "--retry-quarantined").returncode == 0
