"""Real parts, damaged in every way: `verify` must name each damage, and nothing else."""

import ast
import base64
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import pipeline.verify
from pipeline.engine import Engine
from pipeline.errors import UsageError
from pipeline.images import ImageConfig
from pipeline.meter import Meter
from pipeline.model import VQModel
from pipeline.shards.manifest import freeze, from_parquet, to_parquet
from pipeline.storage import Storage
from pipeline.tokenize_shard import Line, tokenize_shard
from pipeline.tokens.schema import ColumnsConfig
from pipeline.tokens.writer import OutputConfig
from pipeline.verify import FindingKind, Verification, verify

JUNK = b"<html>not an image</html>"
FINGERPRINT = "f" * 64
Edit = Callable[[list[dict[str, Any]], dict[str, Any]], object]


@dataclass(frozen=True)
class Run:
    """A finished run: shards `a` (samples a0..a5, a2 is a reject), `b` (gzip, 4 samples) and `c` (no samples)."""

    shards: Path
    output: Path

    def part(self, stem: str) -> Path:
        (path,) = (self.output / "tokens").glob(f"{stem}-*.parquet")
        return path

    def verify(self, **options: Any) -> Verification:
        return verify(Storage(), str(self.output), threads=2, **options)

    def kinds(self, **options: Any) -> list[FindingKind]:
        return [finding.kind for finding in self.verify(**options).findings]

    def edit(self, change: Edit, stem: str = "a") -> None:
        """Write a part anew with other rows or another footer (its rejects unpacked meanwhile)."""
        table = pq.read_table(self.part(stem))
        rows, footer = table.to_pylist(), json.loads(table.schema.metadata[b"tokenmill"])
        packed = base64.b64decode(footer["rejects"])
        footer["rejects"] = json.loads(pa.decompress(packed, footer["rejects_bytes"], "zstd")) if packed else []
        change(rows, footer)
        if isinstance(footer.get("rejects"), list):
            text = json.dumps(footer["rejects"]).encode()
            packed = pa.compress(text, "zstd", asbytes=True)
            footer |= {"rejects": base64.b64encode(packed).decode(), "rejects_bytes": len(text)}
        metadata = {b"tokenmill": json.dumps(footer).encode()} if footer else None
        edited = pa.Table.from_pylist(rows, table.schema.with_metadata(metadata))
        pq.write_table(edited, self.part(stem), compression="zstd", write_page_checksum=True)


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (20, 24, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def members_of_a() -> list[tuple[str, bytes]]:
    return [
        (f"a{i}.{kind}", data) for i in range(6) for kind, data in (("png", JUNK if i == 2 else png(i)), ("cls", b"7"))
    ]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        engine = Engine(
            VQModel(
                block_out_channels=(8, 8),
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                norm_num_groups=4,
                latent_channels=4,
                num_vq_embeddings=32,
            ),
            image_size=16,
        )
    yield engine
    engine.close()


@pytest.fixture
def run(engine: Engine, tmp_path: Path) -> Run:
    found = Run(tmp_path / "shards", tmp_path / "out")
    found.shards.mkdir()
    write_tar(found.shards / "a.tar", members_of_a())
    write_tar(found.shards / "b.tar.gz", [(f"folder/b{i}.png", png(9 + i)) for i in range(4)])
    write_tar(found.shards / "c.tar", [])
    storage, output = Storage(), OutputConfig(url=str(found.output))
    shards = freeze(storage, [str(found.shards)])
    with ThreadPoolExecutor(1) as decoders:
        image = ImageConfig(size=16)
        line = Line(storage, engine, decoders, Meter(), image, ColumnsConfig(), output, FINGERPRINT)
        for shard in shards:
            tokenize_shard(shard, line)
    (found.output / "manifest.parquet").write_bytes(to_parquet(shards))
    (found.output / "job.json").write_text(json.dumps({"fingerprint": FINGERPRINT, "spec": asdict(engine.spec)}))
    return found


# --- a run without damage --------------------------------------------------------------------------------------------


def accounts(result: Verification) -> list[tuple[int | None, int, int]]:
    return [(account.samples, account.rows, account.rejects) for account in result.accounts]


def test_clean_run(run: Run) -> None:
    result = run.verify()
    assert result.findings == []
    assert result.ok
    assert accounts(result) == [(6, 5, 1), (4, 4, 0), (0, 0, 0)]
    assert [account.url for account in result.accounts] == [
        f"file://{run.shards}/{name}" for name in ("a.tar", "b.tar.gz", "c.tar")
    ]


def test_clean_run_without_sources(run: Run) -> None:
    shutil.rmtree(run.shards)
    result = run.verify(source=False)
    assert result.ok
    assert accounts(result) == [(None, 5, 1), (None, 4, 0), (None, 0, 0)]


def test_clean_run_of_rejects_only(run: Run) -> None:
    def reject_all(rows: list[dict[str, Any]], footer: dict[str, Any]) -> None:
        footer["rejects"] = [[f"a{i}", i, "decode", "not_image", ""] for i in range(6)]
        footer["counts"] = {"samples": 6, "tokenized": 0, "rows": 0, "rejects": 6}
        rows.clear()

    run.edit(reject_all)
    assert accounts(run.verify())[0] == (6, 0, 6)
    assert run.kinds() == []


def test_progress_of_each_shard(run: Run) -> None:
    seen: list[tuple[int, int]] = []
    run.verify(on_shard=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


# --- damage to files -------------------------------------------------------------------------------------------------


def flip_page_bits(run: Run) -> None:
    run.edit(lambda rows, footer: None)
    column = pq.ParquetFile(run.part("a")).metadata.row_group(0).column(4)
    assert column.path_in_schema.startswith("tokens")
    data = bytearray(run.part("a").read_bytes())
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 0x10
    run.part("a").write_bytes(data)


def repeat_in_manifest(run: Run) -> None:
    path = run.output / "manifest.parquet"
    shards = from_parquet(path.read_bytes())
    path.write_bytes(to_parquet([*shards, shards[1]]))


def keep_time(path: Path, change: Callable[[], object]) -> None:
    """Change a file so that neither its size nor its time tells."""
    before = path.stat()
    change()
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def rename_in_source(run: Run) -> None:
    path = run.shards / "a.tar"
    renamed = [(name.replace("a4.", "x4."), data) for name, data in members_of_a()]
    keep_time(path, lambda: write_tar(path, renamed))


def zero_header_in_source(run: Run) -> None:
    path = run.shards / "a.tar"
    with tarfile.open(path) as archive:
        start = archive.getmember("a3.png").offset
    data = path.read_bytes()
    keep_time(path, lambda: path.write_bytes(data[:start] + bytes(512) + data[start + 512 :]))


FILES: dict[str, tuple[Callable[[Run], object], list[str]]] = {
    "part deleted": (lambda run: run.part("a").unlink(), ["missing_part"]),
    "part under another name": (lambda run: shutil.copy(run.part("a"), run.part("a").with_name("z.parquet")), ["foreign_part"]),
    "part in place of another": (lambda run: shutil.copy(run.part("a"), run.part("b")), ["wrong_shard"]),
    "stray file": (lambda run: run.part("a").with_name("notes.txt").write_text("hello"), ["foreign_part"]),
    "temporary file": (lambda run: run.part("a").with_name(".a.parquet.x.tmp").write_text("PAR1"), ["leftover"]),
    "part cut": (lambda run: os.truncate(run.part("a"), run.part("a").stat().st_size - 100), ["damaged_part"]),
    "part emptied": (lambda run: os.truncate(run.part("a"), 0), ["damaged_part"]),
    "part of other content": (lambda run: run.part("a").write_bytes(JUNK), ["damaged_part"]),
    "bits flipped in a page": (flip_page_bits, ["damaged_part"]),
    "part and source deleted": (lambda run: (run.part("a").unlink(), (run.shards / "a.tar").unlink()), ["missing_part"]),
    "source deleted": (lambda run: (run.shards / "a.tar").unlink(), ["source_unreadable"]),
    "source longer": (lambda run: os.truncate(run.shards / "a.tar", 1 << 20), ["source_changed"]),
    "source with other keys": (rename_in_source, ["wrong_key"]),
    "source with a zeroed header": (zero_header_in_source, ["source_unreadable"]),
    "shard twice in the manifest": (repeat_in_manifest, ["duplicate_shard"]),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "kinds"), FILES.values(), ids=FILES)
def test_damage_to_files(run: Run, damage: Callable[[Run], object], kinds: list[str]) -> None:
    damage(run)
    assert run.kinds() == kinds


# --- damage to rows and footers --------------------------------------------------------------------------------------


def two_views(rows: list[dict[str, Any]], footer: dict[str, Any]) -> None:
    rows += [row | {"view": 1} for row in rows]
    footer["counts"]["rows"] *= 2


def lose_a_view(rows: list[dict[str, Any]], footer: dict[str, Any]) -> None:
    two_views(rows, footer)
    rows.pop()
    footer["counts"]["rows"] -= 1


def lose_the_last(rows: list[dict[str, Any]], footer: dict[str, Any]) -> None:
    """A writer that lost a sample and never knew."""
    rows.pop()
    footer["counts"] = {"samples": 5, "tokenized": 4, "rows": 4, "rejects": 1}


def swap_keys(rows: list[dict[str, Any]], footer: dict[str, Any]) -> None:
    rows[0]["key"], rows[1]["key"] = rows[1]["key"], rows[0]["key"]


EDITS: dict[str, tuple[Edit, list[str]]] = {
    "nothing": (lambda rows, footer: None, []),
    "rows in another order": (lambda rows, footer: rows.reverse(), []),
    "two views": (two_views, []),
    "view lost": (lose_a_view, ["missing_views"]),
    "row lost": (lambda rows, footer: rows.pop(1), ["unbalanced", "missing_samples"]),
    "row twice": (lambda rows, footer: rows.append(rows[1]), ["unbalanced", "duplicate_samples"]),
    "sample lost and not counted": (lose_the_last, ["missing_samples"]),
    "row of a rejected sample": (
        lambda rows, footer: rows[2].update(sample_index=2, key="a2"),
        ["unbalanced", "missing_samples", "duplicate_samples"],
    ),
    "reject lost": (lambda rows, footer: footer["rejects"].clear(), ["unbalanced", "missing_samples"]),
    "reject twice": (lambda rows, footer: footer["rejects"].extend(footer["rejects"]), ["unbalanced", "duplicate_samples"]),
    "index beyond the shard": (lambda rows, footer: rows[4].update(sample_index=9), ["missing_samples", "unknown_samples"]),
    "counts wrong": (lambda rows, footer: footer["counts"].update(rejects=0), ["unbalanced"]),
    "key changed": (lambda rows, footer: rows[3].update(key="a9"), ["wrong_key"]),
    "keys swapped": (swap_keys, ["wrong_key"]),
    "key of a reject changed": (lambda rows, footer: footer["rejects"][0].__setitem__(0, "a9"), ["wrong_key"]),
    "token out of range": (lambda rows, footer: rows[1]["tokens"].__setitem__(5, 32), ["index_out_of_range"]),
    "grid wrong": (lambda rows, footer: rows[1].update(grid_height=4), ["wrong_grid"]),
    "shard of a row wrong": (lambda rows, footer: rows[1].update(shard="file:///x.tar"), ["wrong_shard"]),
    "fingerprint of another job": (lambda rows, footer: footer.update(fingerprint="0" * 64), ["wrong_fingerprint"]),
    "codebook of another job": (lambda rows, footer: footer["spec"].update(codebook_size=64), ["wrong_fingerprint"]),
    "made of another version": (lambda rows, footer: footer["shard"].update(etag="1.0"), ["source_changed"]),
    "schema of the future": (lambda rows, footer: footer.update(schema=99), ["damaged_part"]),
    "footer without counts": (lambda rows, footer: footer.pop("counts"), ["damaged_part"]),
    "footer with an endless count": (lambda rows, footer: footer["counts"].update(samples=1 << 70), ["damaged_part"]),
    "no footer": (lambda rows, footer: footer.clear(), ["damaged_part"]),
    "rejects not base64": (lambda rows, footer: footer.update(rejects="?"), ["damaged_part"]),
    "rejects not zstd": (lambda rows, footer: footer.update(rejects="AAAA"), ["damaged_part"]),
    "reject of an unknown stage": (lambda rows, footer: footer["rejects"][0].__setitem__(2, "lunch"), ["damaged_part"]),
}  # fmt: skip


@pytest.mark.parametrize(("change", "kinds"), EDITS.values(), ids=EDITS)
def test_damage_to_rows_and_footers(run: Run, change: Edit, kinds: list[str]) -> None:
    run.edit(change)
    assert run.kinds() == kinds


def test_sample_lost_and_not_counted_shows_in_the_source_only(run: Run) -> None:
    run.edit(lose_the_last)
    assert run.kinds(source=False) == []
    (finding,) = run.verify().findings
    assert finding.shard == f"file://{run.shards}/a.tar"
    assert "neither row nor reject: 1 of its samples (sample_index 5)" in finding.message


def test_shared_key_shows_without_sources(run: Run) -> None:
    run.edit(lambda rows, footer: rows[0].update(key="a3"))
    assert run.kinds(source=False) == ["wrong_key"]


def test_long_lists_of_samples_are_shortened(run: Run) -> None:
    def spread(rows: list[dict[str, Any]], footer: dict[str, Any]) -> None:
        rows += [rows[0] | {"sample_index": 10 * i, "key": f"k{i}"} for i in range(1, 9)]
        rows += [rows[0] | {"sample_index": 11, "key": "k"}]

    run.edit(spread)
    message = next(f.message for f in run.verify().findings if f.kind == "unknown_samples")
    assert "9 of its samples (sample_index 10-11, 20, 30, 40, 50, ...)" in message


def test_columns_of_another_type(run: Run) -> None:
    table = pq.read_table(run.part("a"))
    place = table.schema.get_field_index("sample_index")
    pq.write_table(table.set_column(place, "sample_index", table["sample_index"].cast(pa.int64())), run.part("a"))
    (finding,) = run.verify().findings
    assert finding.kind == "damaged_part"
    assert "sample_index must be uint32, got int64" in finding.message


def test_any_flipped_byte_is_found_or_changes_no_row(run: Run) -> None:
    """Wherever a byte is wrong, verification goes on; where pages are checked, no wrong row passes."""
    run.edit(lambda rows, footer: None)
    part, good = run.part("a"), run.part("a").read_bytes()
    table = pq.read_table(part)
    for at in range(0, len(good), 97):
        part.write_bytes(good[:at] + bytes([good[at] ^ 0x41]) + good[at + 1 :])
        result = run.verify(source=False)
        assert not result.ok or pq.read_table(part).equals(table), f"byte {at} of {len(good)}"


# --- what a run says of itself ---------------------------------------------------------------------------------------


def test_quarantined_shard_has_its_reason(run: Run) -> None:
    run.part("a").unlink()
    entry = {"shard": f"file://{run.shards}/a.tar", "reason": "crashed", "message": "killed 3 actors"}
    (run.output / "summary.json").write_text(json.dumps({"quarantined": [entry]}))
    (finding,) = run.verify().findings
    assert "its 6 samples are in no part: it was quarantined as crashed: killed 3 actors" in finding.message


def test_shard_missing_when_frozen(run: Run) -> None:
    path = run.output / "manifest.parquet"
    (run.shards / "d.tar").unlink(missing_ok=True)
    (missing,) = freeze(Storage(), [str(run.shards / "d.tar")])
    path.write_bytes(to_parquet([*from_parquet(path.read_bytes()), missing]))
    result = run.verify()
    assert [finding.kind for finding in result.findings] == ["missing_part"]
    assert "was not there when the manifest was frozen" in result.findings[0].message
    assert accounts(result)[3] == (None, 0, 0)


@pytest.mark.parametrize("name", ["job.json", "manifest.parquet"])
@pytest.mark.parametrize("content", [None, b"", b"{}", JUNK], ids=["missing", "empty", "braces", "html"])
def test_unusable_description_of_the_run(run: Run, name: str, content: bytes | None) -> None:
    (run.output / name).unlink()
    if content is not None:
        (run.output / name).write_bytes(content)
    with pytest.raises(UsageError, match=name):
        run.verify()


def test_independence_of_the_writer() -> None:
    folder = Path(pipeline.verify.__file__).parent
    trees = [
        ast.parse((folder / f"{name}.py").read_text()) for name in ("verify", "recount", "storage", "urls", "errors")
    ]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    used = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    used |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    ours = {name for name in used if name and name.startswith(("pipeline", "jobs"))}
    assert ours == {"pipeline.recount", "pipeline.storage", "pipeline.urls", "pipeline.errors"}
