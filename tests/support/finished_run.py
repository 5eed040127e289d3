"""A finished run made without Ray, and the tools to damage it."""

import base64
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.shards.manifest import freeze, to_parquet
from pipeline.storage import Storage
from pipeline.tokenize_shard import tokenize_shard
from tests.support.corpora import jpeg
from tests.support.lines import production_line

JUNK = b"<html>not an image</html>"
FINGERPRINT = "f" * 64


@dataclass
class Draft:
    """A part taken apart, to be changed and written anew: without a footer if that is empty.

    `rejects` go into the footer packed; if they are None, what the footer has stays.
    """

    rows: list[dict[str, Any]]
    footer: dict[str, Any]
    rejects: list[list[Any]] | None

    def set(self, field: str, **values: Any) -> None:
        """Change one object of the footer."""
        self.footer[field] |= values

    def metadata(self) -> dict[bytes, bytes]:
        """The footer as key-value metadata of Parquet."""
        if self.footer and self.rejects is not None:
            text = json.dumps(self.rejects).encode()
            packed = base64.b64encode(pa.compress(text, "zstd", asbytes=True)).decode()
            self.footer |= {"rejects": packed, "rejects_bytes": len(text)}
        return {b"tokenmill": json.dumps(self.footer).encode()} if self.footer else {}


Change = Callable[[Draft], object]


@dataclass(frozen=True)
class FinishedRun:
    """A run of three shards: `a` (samples a0..a5, a2 is a reject), `b` (gzip, 4 samples) and `c` (no samples)."""

    shards: Path
    output: Path

    def source(self, name: str = "a.tar") -> Path:
        return self.shards / name

    def part(self, stem: str = "a") -> Path:
        (path,) = (self.output / "tokens").glob(f"{stem}-*.parquet")
        return path

    def edit(self, change: Change) -> None:
        """Write the part of shard `a` anew, with page checksums."""
        file = pq.ParquetFile(self.part())
        footer = json.loads(file.metadata.metadata[b"tokenmill"])
        packed = base64.b64decode(footer["rejects"])
        rejects = pa.decompress(packed, footer["rejects_bytes"], "zstd", asbytes=True)
        draft = Draft(file.read().to_pylist(), footer, json.loads(rejects))
        change(draft)
        table = pa.Table.from_pylist(draft.rows, file.schema_arrow.with_metadata(draft.metadata()))
        pq.write_table(table, self.part(), write_page_checksum=True)

    def build(self, model: Path, **options: object) -> None:
        """Write the shards, tokenize them on a line with these options, describe the run."""
        self.shards.mkdir()
        write_tar(self.source("a.tar"), members_of_a())
        write_tar(self.source("b.tar.gz"), [(f"folder/b{i}.jpg", jpeg(9 + i)) for i in range(4)])
        write_tar(self.source("c.tar"), [])
        shards = freeze(Storage(), [str(self.shards)])
        with production_line(model, str(self.output), fingerprint=FINGERPRINT, **options) as line:
            for shard in shards:
                tokenize_shard(shard, line)
            job = {"fingerprint": FINGERPRINT, "spec": asdict(line.engine.spec)}
        (self.output / "job.json").write_text(json.dumps(job))
        (self.output / "manifest.parquet").write_bytes(to_parquet(shards))


def members_of_a() -> list[tuple[str, bytes]]:
    """Names and contents of the members of shard `a`."""
    images = [JUNK if i == 2 else jpeg(i) for i in range(6)]
    return [member for i in range(6) for member in ((f"a{i}.jpg", images[i]), (f"a{i}.cls", b"7"))]


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    """A tar of these members, compressed if its name ends in .gz."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
