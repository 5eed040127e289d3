"""From what a user writes to a frozen list of shards."""

import re
from pathlib import Path

import pytest

from pipeline.errors import ShardError, ShardFault, StorageError, UsageError
from pipeline.shards import manifest
from pipeline.shards.manifest import Shard, freeze, from_parquet, shard_id, to_parquet
from pipeline.storage import Blob, Storage
from pipeline.tokens.schema import canonical_json


def write(folder: str, *names: str) -> None:
    for name in names:
        Storage().write(f"{folder}/{name}", name.encode())


def found(store_url: str, *specs: str) -> list[str]:
    """The shards that specs below `store_url` name; a missing one has a `-` before its name."""
    shards = freeze(Storage(), [spec if spec.startswith("@") else f"{store_url}/{spec}" for spec in specs])
    return [("-" if shard.size is None else "") + shard.url.removeprefix(f"{store_url}/") for shard in shards]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("a.tar", ["a.tar"]),
        ("{0..2}.tar", ["0.tar", "1.tar", "2.tar"]),
        ("{08..11}.tar", ["08.tar", "09.tar", "10.tar", "11.tar"]),
        ("{8..11}.tar", ["10.tar", "11.tar", "8.tar", "9.tar"]),
        ("{00..100}.tar", [f"{n:03d}.tar" for n in range(101)]),  # as bash pads
        ("{5..5}.tar", ["5.tar"]),
        ("{a,b}.tar", ["a.tar", "b.tar"]),
        ("{a,b}{0..1}.tar", ["a0.tar", "a1.tar", "b0.tar", "b1.tar"]),
        ("{a,b{0..1},c}.tar", ["a.tar", "b0.tar", "b1.tar", "c.tar"]),
        ("{a,{b,c}}.tar", ["a.tar", "b.tar", "c.tar"]),
        ("a{,b}.tar", ["a.tar", "ab.tar"]),
        ("{train,val}/{0..1}.tgz", ["train/0.tgz", "train/1.tgz", "val/0.tgz", "val/1.tgz"]),
    ],
)
def test_braces(tmp_path: Path, spec: str, expected: list[str]) -> None:
    assert found(f"file://{tmp_path}", spec) == sorted(f"-{name}" for name in expected)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{0..3.tar", "unbalanced braces"),
        ("0..3}.tar", "unbalanced braces"),
        ("{3..0}.tar", "must count upwards"),
        ("{}.tar", "braces must hold"),
        ("{a}.tar", "braces must hold"),
        ("{0..10..2}.tar", "braces must hold"),
        ("{a..c}.tar", "braces must hold"),
        ("{0..99999999999}.tar", "to 2,000,000 shards at most"),
        ("*.tar", "nothing matches this pattern"),
        ("missing/", "neither a file nor a folder that holds shards"),
        ("missing", "neither a file nor a folder that holds shards"),
        ("empty", "neither a file nor a folder that holds shards"),
        ("@missing.txt", "@.*missing.txt: no such list"),
    ],
)
def test_spec_that_names_nothing(tmp_path: Path, spec: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    place = f"@{tmp_path}/{spec[1:]}" if spec.startswith("@") else f"{tmp_path}/{spec}"
    with pytest.raises(UsageError, match=message):
        freeze(Storage(), [place])


@pytest.mark.parametrize("specs", [[], [""], ["  "]])
def test_no_specs(specs: list[str]) -> None:
    with pytest.raises(UsageError, match="no shards: give at least one"):
        freeze(Storage(), specs)


def test_product_of_braces_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "MAX_SHARDS", 100)
    assert len(freeze(Storage(), [f"{tmp_path}/{{0..9}}{{0..9}}.tar"])) == 100
    with pytest.raises(UsageError, match="more than 100"):
        freeze(Storage(), [f"{tmp_path}/{{0..9}}{{0..9}}.tar", f"{tmp_path}/one-more.tar"])


@pytest.mark.parametrize("spec", ["pipe:cat a.tar", "file::s3://b/a.tar", "ftp://h/a.tar", "{s3,ftp}://b/a.tar"])
def test_place_that_is_not_allowed(spec: str) -> None:
    with pytest.raises(UsageError, match=r"refused|unknown URL scheme"):
        freeze(Storage(), [spec])


@pytest.mark.parametrize(
    ("specs", "expected"),
    [
        (["in"], ["in/0.tar", "in/1.tar.gz", "in/2.tgz", "in/3.tar.zst"]),
        (["in/"], ["in/0.tar", "in/1.tar.gz", "in/2.tgz", "in/3.tar.zst"]),
        (["in/*.tar"], ["in/0.tar"]),
        (["in/**/*.tar"], ["in/0.tar", "in/below/5.tar"]),
        (["{in,in/below}/*.tar"], ["in/0.tar", "in/below/5.tar"]),
        (["in/notes.txt"], ["in/notes.txt"]),  # named in full: taken at its word
        (["in/{0..2}.tar"], ["-in/1.tar", "-in/2.tar", "in/0.tar"]),
        (["in/below.tar"], ["-in/below.tar"]),
        (["in/0.tar", "in/*.tar", "in/below/../0.tar"], ["in/0.tar"]),
        (["in/below/5.tar", "in/0.tar"], ["in/0.tar", "in/below/5.tar"]),
    ],
)
def test_folders_patterns_names_and_mixtures(store_url: str, specs: list[str], expected: list[str]) -> None:
    write(store_url, "in/0.tar", "in/1.tar.gz", "in/2.tgz", "in/3.tar.zst", "in/notes.txt", "in/below/5.tar")
    if store_url.startswith("s3:"):
        specs = [spec for spec in specs if ".." not in spec or "{" in spec]  # object stores know no parent folder
    assert sorted(found(store_url, *specs)) == expected


def test_frozen_shard_is_the_object(store_url: str) -> None:
    write(store_url, "0.tar")
    (shard,) = freeze(Storage(), [f"{store_url}/0.tar"])
    assert shard.blob() == Storage().stat(f"{store_url}/0.tar") == Blob(shard.url, 5, shard.etag)


def test_missing_shard_has_no_blob(store_url: str) -> None:
    (shard,) = freeze(Storage(), [f"{store_url}/0.tar"])
    assert (shard.size, shard.etag) == (None, None)
    with pytest.raises(ShardError, match="no such object") as caught:
        shard.blob()
    assert caught.value.reason is ShardFault.MISSING


def test_list_of_specs(store_url: str) -> None:
    write(store_url, "0.tar", "1.tar", "in/2.tar", "c#d.tar")
    lines = f"\ufeff# shards\n\n  {store_url}/0.tar  \r\n{store_url}/in\n{store_url}/{{1..1}}.tar\n{store_url}/c#d.tar"
    Storage().write(f"{store_url}/list.txt", lines.encode())
    assert found(store_url, f"@{store_url}/list.txt", "0.tar") == ["0.tar", "1.tar", "c#d.tar", "in/2.tar"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"@other.txt", "line 2: a list must not name other lists"),
        (b"pipe:cat a.tar", "pipe: URLs run a shell"),
        (b"\xff\xfe", "a list must be UTF-8 text"),
    ],
)
def test_list_that_is_refused(store_url: str, line: bytes, message: str) -> None:
    Storage().write(f"{store_url}/list.txt", b"# shards\n" + line)
    with pytest.raises(UsageError, match=message):
        freeze(Storage(), [f"@{store_url}/list.txt"])


@pytest.mark.system
@pytest.mark.usefixtures("s3")
def test_remote_list_must_not_name_local_files(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"x")
    Storage().write("s3://tests/lists/a.txt", f"{tmp_path}/a.tar".encode())
    with pytest.raises(UsageError, match="line 1: a remote list must not name local files"):
        freeze(Storage(), ["@s3://tests/lists/a.txt"])


# --- looking up many names --------------------------------------------------------------------------------------------


class Watched(Storage):
    """A storage that counts what it is asked, and may have no permission to list."""

    def __init__(self, *, may_list: bool = True) -> None:
        super().__init__()
        self.stats, self.lists, self._may_list = 0, 0, may_list

    def stat(self, url: str) -> Blob:
        self.stats += 1
        return super().stat(url)

    def list_folder(self, folder: str, suffix: str = "") -> list[Blob]:
        self.lists += 1
        if not self._may_list:
            raise UsageError("permission denied")
        return super().list_folder(folder, suffix)


@pytest.mark.system
@pytest.mark.usefixtures("s3")
@pytest.mark.parametrize("may_list", [True, False])
def test_many_names_of_a_remote_folder_are_looked_up_by_listing(may_list: bool) -> None:
    write("s3://tests/many", "0007.tar", "0600.tar", "other.txt")
    storage = Watched(may_list=may_list)
    shards = freeze(storage, ["s3://tests/many/{0000..0699}.tar"])
    assert [shard.url[-8:] for shard in shards if shard.size is not None] == ["0007.tar", "0600.tar"]
    assert len(shards) == 700
    assert (storage.lists, storage.stats) == (1, 0 if may_list else 700)
    assert [shard for shard in shards if shard.size] == freeze(Storage(), ["s3://tests/many/{0007,0600}.tar"])


def test_failure_of_the_store_is_not_a_missing_shard(tmp_path: Path) -> None:
    class Broken(Storage):
        def stat(self, url: str) -> Blob:
            raise StorageError(f"{url}: away")

    with pytest.raises(StorageError, match="away"):
        freeze(Broken(), [f"{tmp_path}/{{0..9}}.tar"])


# --- identity and storage ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "stem"),
    [
        ("s3://bucket/train/00000.tar", "00000"),
        ("s3://bucket/val/00000.tar", "00000"),
        ("s3://bucket/a b/ü & c.tar.gz", "_c"),
        ("s3://bucket/..x.tar.zst", "x"),
        ("s3://bucket/图.tgz", "_"),
        ("s3://bucket/.tar", "shard"),
        (f"s3://bucket/{'x' * 300}.tar", "x" * 80),
        ("/data/00000.tar", "00000"),
    ],
)
def test_shard_id(url: str, stem: str) -> None:
    assert re.fullmatch(re.escape(stem) + "-[0-9a-f]{12}", shard_id(url))


def test_shard_id_of_a_url_with_credentials() -> None:
    with pytest.raises(UsageError, match="credentials"):
        shard_id("s3://key:secret@bucket/00000.tar")


def test_shard_ids_are_stable_and_distinct() -> None:
    assert shard_id("s3://bucket/train/00000.tar") == "00000-d865c935bbd4"
    folders = ["s3://bucket/train", "s3://bucket/val", "s3://other/train", "gs://bucket/train", "/bucket/train"]
    assert len({shard_id(f"{folder}/{name}") for folder in folders for name in ("0.tar", "0.tgz", "0.TAR")}) == 15


def test_parquet_round_trip() -> None:
    shards = [Shard("a-1", "s3://b/a.tar", 5, "etag"), Shard("b-2", "s3://b/ü.tar", None, None)]
    assert from_parquet(to_parquet(shards)) == shards
    assert from_parquet(to_parquet([])) == []


@pytest.mark.parametrize("data", [b"", b"<html>", to_parquet([])[:-9], canonical_json({})])
def test_damaged_manifest(data: bytes) -> None:
    with pytest.raises(UsageError, match=r"manifest\.parquet is damaged"):
        from_parquet(data)
