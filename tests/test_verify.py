"""Real parts, damaged in every way: `verify` must name each damage, and nothing else."""

import ast
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline.verify
from pipeline.errors import StorageError, UsageError
from pipeline.shards.manifest import freeze, from_parquet, to_parquet
from pipeline.storage import Blob, ByteStream, Storage
from pipeline.verify import FindingKind, Verification, verify
from tests.support.finished_run import JUNK, Change, Draft, FinishedRun, members_of_a, write_tar

Damage = Callable[[FinishedRun], object]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Path, Path]:
    """A folder with a finished run, and a copy of it."""
    folder = tmp_path_factory.mktemp("verify")
    (folder / "now").mkdir()
    FinishedRun(folder / "now" / "shards", folder / "now" / "output").build(tiny_model)
    shutil.copytree(folder / "now", folder / "copy")
    return folder / "now", folder / "copy"


@pytest.fixture
def run(built: tuple[Path, Path]) -> FinishedRun:
    """The run as it was built: parts name their sources by path and time, so it is always the same folder."""
    now, copy = built
    shutil.rmtree(now)
    shutil.copytree(copy, now)
    return FinishedRun(now / "shards", now / "output")


def verified(run: FinishedRun, **options: Any) -> Verification:
    return verify(Storage(), str(run.output), threads=2, **options)


def kinds(run: FinishedRun, **options: Any) -> list[FindingKind]:
    return [finding.kind for finding in verified(run, **options).findings]


# --- a run without damage --------------------------------------------------------------------------------------------


def accounts(result: Verification) -> list[tuple[int | None, int, int]]:
    return [(account.samples, account.rows, account.rejects) for account in result.accounts]


def test_clean_run(run: FinishedRun) -> None:
    result = verified(run)
    assert result.findings == []
    assert result.ok
    assert accounts(result) == [(6, 5, 1), (4, 4, 0), (0, 0, 0)]
    assert [account.url for account in result.accounts] == [
        f"file://{run.shards}/{name}" for name in ("a.tar", "b.tar.gz", "c.tar")
    ]
    assert [f"{account.shard}.parquet" for account in result.accounts] == [run.part(stem).name for stem in "abc"]


def test_clean_run_without_sources(run: FinishedRun) -> None:
    shutil.rmtree(run.shards)
    result = verified(run, source=False)
    assert result.ok
    assert accounts(result) == [(None, 5, 1), (None, 4, 0), (None, 0, 0)]


def test_clean_run_of_rejects_only(run: FinishedRun) -> None:
    def reject_all(draft: Draft) -> None:
        draft.rejects = [[f"a{i}", i, "decode", "not_image", ""] for i in range(6)]
        draft.set("counts", samples=6, tokenized=0, rows=0, rejects=6)
        draft.rows.clear()

    run.edit(reject_all)
    result = verified(run)
    assert result.ok
    assert accounts(result)[0] == (6, 0, 6)


def test_progress_of_each_shard(run: FinishedRun) -> None:
    seen: list[tuple[int, int]] = []
    verified(run, on_shard=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


# --- damage to files -------------------------------------------------------------------------------------------------


def as_it_is(draft: Draft) -> None:
    """Change nothing."""


def flip_page_bits(run: FinishedRun) -> None:
    run.edit(as_it_is)
    group = pq.ParquetFile(run.part()).metadata.row_group(0)
    column = next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema.startswith("tokens"))
    data = bytearray(run.part().read_bytes())
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 0x10
    run.part().write_bytes(data)


def repeat_in_manifest(run: FinishedRun) -> None:
    path = run.output / "manifest.parquet"
    shards = from_parquet(path.read_bytes())
    path.write_bytes(to_parquet([*shards, shards[1]]))


def keep_time(path: Path, change: Callable[[], object]) -> None:
    """Change a file so that neither its size nor its time tells."""
    before = path.stat()
    change()
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def rename_in_source(run: FinishedRun) -> None:
    renamed = [(name.replace("a4.", "x4."), data) for name, data in members_of_a()]
    keep_time(run.source(), lambda: write_tar(run.source(), renamed))


def split_in_source(run: FinishedRun) -> None:
    """One member gets a key of its own: seven samples."""
    renamed = [(name.replace("a5.cls", "a6.cls"), data) for name, data in members_of_a()]
    keep_time(run.source(), lambda: write_tar(run.source(), renamed))


def zero_header_in_source(run: FinishedRun) -> None:
    with tarfile.open(run.source()) as archive:
        start = archive.getmember("a3.jpg").offset
    data = run.source().read_bytes()
    keep_time(run.source(), lambda: run.source().write_bytes(data[:start] + bytes(512) + data[start + 512 :]))


def garble_compressed_source(run: FinishedRun) -> None:
    path = run.source("b.tar.gz")
    data = path.read_bytes()
    keep_time(path, lambda: path.write_bytes(data[:300] + bytes(100) + data[400:]))


FILES: dict[str, tuple[Damage, list[str]]] = {
    "part deleted": (lambda run: run.part().unlink(), ["missing_part"]),
    "part twice": (lambda run: shutil.copy(run.part(), run.part().with_name("z.parquet")), ["foreign_part"]),
    "part in place of another": (lambda run: shutil.copy(run.part("a"), run.part("b")), ["wrong_shard"]),
    "stray file": (lambda run: run.part().with_name("notes.txt").write_text("hello"), ["foreign_part"]),
    "temporary file": (lambda run: run.part().with_name(".a.parquet.x.tmp").write_text("PAR1"), ["leftover"]),
    "part cut": (lambda run: os.truncate(run.part(), run.part().stat().st_size - 100), ["damaged_part"]),
    "part emptied": (lambda run: os.truncate(run.part(), 0), ["damaged_part"]),
    "part of other content": (lambda run: run.part().write_bytes(JUNK), ["damaged_part"]),
    "bits flipped in a page": (flip_page_bits, ["damaged_part"]),
    "part and source deleted": (lambda run: (run.part().unlink(), run.source().unlink()), ["missing_part"]),
    "source deleted": (lambda run: run.source().unlink(), ["source_unreadable"]),
    "source longer": (lambda run: os.truncate(run.source(), 1 << 20), ["source_changed"]),
    "source with another key": (rename_in_source, ["wrong_key"]),
    "source with another sample": (split_in_source, ["missing_samples"]),
    "source with a zeroed header": (zero_header_in_source, ["source_unreadable"]),
    "source with damaged compression": (garble_compressed_source, ["source_unreadable"]),
    "shard twice in the manifest": (repeat_in_manifest, ["duplicate_shard"]),
}


@pytest.mark.parametrize(("damage", "expected"), FILES.values(), ids=FILES)
def test_damage_to_files(run: FinishedRun, damage: Damage, expected: list[str]) -> None:
    damage(run)
    assert kinds(run) == expected


# --- damage to rows and footers --------------------------------------------------------------------------------------


def two_views(draft: Draft) -> None:
    draft.rows += [row | {"view": 1} for row in draft.rows]
    draft.set("counts", rows=10)


def lose_a_view(draft: Draft) -> None:
    two_views(draft)
    draft.rows.pop()
    draft.set("counts", rows=9)


def lose_the_last(draft: Draft) -> None:
    """What a writer leaves that lost a sample and never knew."""
    draft.rows.pop()
    draft.set("counts", samples=5, tokenized=4, rows=4)


def swap_keys(draft: Draft) -> None:
    first, second = draft.rows[:2]
    first["key"], second["key"] = second["key"], first["key"]


def rejects_as(text: str) -> Change:
    def change(draft: Draft) -> None:
        draft.rejects = None
        draft.footer["rejects"] = text

    return change


def row_of(index: int, **values: Any) -> Change:
    return lambda draft: draft.rows[index].update(values)


def footer(**values: Any) -> Change:
    return lambda draft: draft.footer.update(values)


EDITS: dict[str, tuple[Change, list[str]]] = {
    "nothing": (as_it_is, []),
    "rows in another order": (lambda draft: draft.rows.reverse(), []),
    "two views": (two_views, []),
    "view lost": (lose_a_view, ["missing_views"]),
    "row lost": (lambda draft: draft.rows.pop(1), ["unbalanced", "missing_samples"]),
    "row twice": (lambda draft: draft.rows.append(draft.rows[1]), ["unbalanced", "duplicate_samples"]),
    "sample lost and not counted": (lose_the_last, ["missing_samples"]),
    "reject also a row": (row_of(2, sample_index=2, key="a2"), ["unbalanced", "missing_samples", "duplicate_samples"]),
    "reject lost": (lambda draft: draft.rejects.clear(), ["unbalanced", "missing_samples"]),
    "reject twice": (lambda draft: draft.rejects.append(draft.rejects[0]), ["unbalanced", "duplicate_samples"]),
    "index beyond the shard": (row_of(4, sample_index=9), ["missing_samples", "unknown_samples"]),
    "counts wrong": (lambda draft: draft.set("counts", rejects=0), ["unbalanced"]),
    "key changed": (row_of(3, key="a9"), ["wrong_key"]),
    "keys swapped": (swap_keys, ["wrong_key"]),
    "key of a reject changed": (lambda draft: draft.rejects[0].__setitem__(0, "a9"), ["wrong_key"]),
    "token out of range": (lambda draft: draft.rows[1]["tokens"].__setitem__(5, 64), ["index_out_of_range"]),
    "grid wrong": (row_of(1, grid_height=4), ["wrong_grid"]),
    "shard of a row wrong": (row_of(1, shard="file:///x.tar"), ["wrong_shard"]),
    "fingerprint of another job": (footer(fingerprint="0" * 64), ["wrong_fingerprint"]),
    "codebook of another job": (lambda draft: draft.set("spec", codebook_size=128), ["wrong_fingerprint"]),
    "made of another version": (lambda draft: draft.set("shard", etag="1.0"), ["source_changed"]),
    "schema of the future": (footer(schema=99), ["damaged_part"]),
    "footer without counts": (lambda draft: draft.footer.pop("counts"), ["damaged_part"]),
    "footer with an endless count": (lambda draft: draft.set("counts", samples=1 << 70), ["damaged_part"]),
    "no footer": (lambda draft: draft.footer.clear(), ["damaged_part"]),
    "rejects not base64": (rejects_as("?"), ["damaged_part"]),
    "rejects not zstd": (rejects_as("AAAA"), ["damaged_part"]),
    "reject of an unknown stage": (lambda draft: draft.rejects[0].__setitem__(2, "lunch"), ["damaged_part"]),
}


@pytest.mark.parametrize(("change", "expected"), EDITS.values(), ids=EDITS)
def test_damage_to_rows_and_footers(run: FinishedRun, change: Change, expected: list[str]) -> None:
    run.edit(change)
    assert kinds(run) == expected


def test_uncounted_loss_shows_in_the_source_only(run: FinishedRun) -> None:
    run.edit(lose_the_last)
    assert kinds(run, source=False) == []
    (finding,) = verified(run).findings
    assert finding.shard == f"file://{run.source()}"
    assert "neither row nor reject nor filtered: 1 of its samples (sample_index 5)" in finding.message
    assert str(run.part()) in finding.message


@pytest.mark.parametrize("change", [row_of(0, key="a3"), lambda draft: (two_views(draft), row_of(9, key="z")(draft))])
def test_keys_at_odds_show_without_sources(run: FinishedRun, change: Change) -> None:
    run.edit(change)
    assert kinds(run, source=False) == ["wrong_key"]


def test_long_lists_of_samples_are_shortened(run: FinishedRun) -> None:
    def spread(draft: Draft) -> None:
        beyond = [10, 11, 20, 30, 40, 50, 60]
        draft.rows += [draft.rows[0] | {"sample_index": index, "key": f"k{index}"} for index in beyond]

    run.edit(spread)
    message = next(finding.message for finding in verified(run).findings if finding.kind == "unknown_samples")
    assert "7 of its samples (sample_index 10-11, 20, 30, 40, 50, ...)" in message


def test_column_of_another_type(run: FinishedRun) -> None:
    file = pq.ParquetFile(run.part())
    table = file.read()
    place = table.schema.get_field_index("sample_index")
    table = table.set_column(place, "sample_index", table["sample_index"].cast(pa.int64()))
    pq.write_table(table.replace_schema_metadata(file.metadata.metadata), run.part())
    (finding,) = verified(run).findings
    assert finding.kind == "damaged_part"
    assert "sample_index must be uint32, got int64" in finding.message


def test_any_flipped_byte_is_found_or_changes_no_row(run: FinishedRun) -> None:
    """Wherever a byte is wrong, verification goes on; no row passes that differs, where pages have checksums."""
    run.edit(as_it_is)
    part, good = run.part(), run.part().read_bytes()
    table, pages_end = pq.read_table(part), len(good) - int.from_bytes(good[-8:-4], "little") - 8
    for at in range(0, len(good), 61):
        part.write_bytes(good[:at] + bytes([good[at] ^ 0x41]) + good[at + 1 :])
        passed = verified(run, source=False).ok
        assert not passed or at >= pages_end or pq.read_table(part).equals(table), f"byte {at} of {len(good)}"


@pytest.mark.parametrize(("suffix", "expected"), [(".parquet", "unreadable_part"), (".tar", "source_unreadable")])
def test_store_without_an_answer(run: FinishedRun, suffix: str, expected: str) -> None:
    class Unreachable(Storage):
        @contextmanager
        def stream(self, blob: Blob) -> Iterator[ByteStream]:
            if blob.url.endswith(suffix):
                raise StorageError(f"{blob.url}: timed out")
            with super().stream(blob) as stream:
                yield stream

    findings = verify(Unreachable(), str(run.output)).findings
    assert {finding.kind for finding in findings} == {expected}
    assert all("timed out" in finding.message for finding in findings)


# --- what a run says of itself ---------------------------------------------------------------------------------------


def test_quarantined_shard_has_its_reason(run: FinishedRun) -> None:
    run.part().unlink()
    entry = {"shard": f"file://{run.source()}", "reason": "crashed", "message": "killed 3 actors"}
    (run.output / "summary.json").write_text(json.dumps({"quarantined": [entry]}))
    (finding,) = verified(run).findings
    assert "its 6 samples are in no part: it was quarantined as crashed: killed 3 actors" in finding.message


def test_missing_source_of_a_missing_part(run: FinishedRun) -> None:
    run.part().unlink()
    run.source().unlink()
    result = verified(run)
    assert "no such object" in result.findings[0].message
    assert accounts(result)[0] == (None, 0, 0)


def test_shard_missing_when_frozen(run: FinishedRun) -> None:
    path = run.output / "manifest.parquet"
    frozen = freeze(Storage(), [str(run.source("d.tar"))])
    path.write_bytes(to_parquet([*from_parquet(path.read_bytes()), *frozen]))
    result = verified(run)
    assert [finding.kind for finding in result.findings] == ["missing_part"]
    assert "was not there when the manifest was frozen" in result.findings[0].message
    assert accounts(result)[3] == (None, 0, 0)


@pytest.mark.parametrize("name", ["job.json", "manifest.parquet"])
@pytest.mark.parametrize("content", [None, b"", b"{}", JUNK], ids=["missing", "empty", "braces", "html"])
def test_unusable_description_of_the_run(run: FinishedRun, name: str, content: bytes | None) -> None:
    (run.output / name).unlink()
    if content is not None:
        (run.output / name).write_bytes(content)
    with pytest.raises(UsageError, match=name):
        verified(run)


def test_independence_of_the_writer() -> None:
    folder = Path(pipeline.verify.__file__).parent
    files = [folder / f"{name}.py" for name in ("verify", "recount", "urls", "errors")]
    files += (folder / "storage").glob("*.py")
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    used = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    used |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    ours = {".".join(name.split(".")[:2]) for name in used if name and name.startswith(("pipeline", "jobs"))}
    assert ours == {"pipeline.recount", "pipeline.storage", "pipeline.urls", "pipeline.errors"}
