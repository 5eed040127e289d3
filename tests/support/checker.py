"""Recounts what a run left, with none of its code: the standard library, pyarrow, and the contract of docs/design.md.

I1  samples == rows + rejects in every shard, and every sample is one or the other
I2  (shard, sample_index, view) is unique
I3  the parts are those of an undisturbed run, byte for byte, and nothing else lies in tokens/
I4  a reader that globs tokens/*.parquet at any moment sees whole parts only, that never change (`Watcher`)
"""

import base64
import hashlib
import json
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

WATCH_SECONDS = 0.01  # between two looks


@dataclass(frozen=True)
class Part:
    """One part as it is on disk.

    Attributes:
        rows: its rows.
        footer: the document in the file's metadata.
        rejects: [key, sample_index, stage, reason, detail] of each rejected sample.
    """

    rows: list[dict[str, Any]]
    footer: dict[str, Any]
    rejects: list[list[Any]]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Open a part and read all of it, checksums included."""
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            footer = json.loads(file.metadata.metadata[b"tokenmill"])
            rows = file.read().to_pylist()
        packed, size = base64.b64decode(footer["rejects"]), footer["rejects_bytes"]
        return cls(rows, footer, json.loads(pa.decompress(packed, size, "zstd", asbytes=True)) if size else [])


def source_keys(shard: Path) -> list[str]:
    """The keys of a tar's samples, in order: names without what follows the basename's first dot."""
    with tarfile.open(shard) as tar:
        names = [member.name for member in tar if member.isfile()]
    heads = (name.rpartition("/") for name in names)
    return list(dict.fromkeys(folder + slash + base.partition(".")[0] for folder, slash, base in heads))


def digests(output: Path) -> dict[str, str]:
    """The parts of an output: file name -> sha256."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(output.glob("tokens/*.parquet"))
    }


def problems(
    output: Path, corpus: Path, undisturbed: Mapping[str, str], *, differ: int = 0, place: str | None = None
) -> list[str]:
    """What is wrong with a finished output; empty if nothing is.

    Args:
        output: of the run, every shard committed.
        corpus: the folder of its shards.
        undisturbed: the parts of an undisturbed run: file name -> sha256.
        differ: how many parts may differ from it, as they hold rejects of poison samples.
        place: the URL under which the run saw the corpus; None is the folder itself.
    """
    return [*_foreign(output, undisturbed, differ), *_miscounted(output, corpus, place or f"file://{corpus}")]


def _foreign(output: Path, undisturbed: Mapping[str, str], differ: int) -> Iterator[str]:
    """I3."""
    there = {path.name for path in (output / "tokens").iterdir()}
    for name in sorted(there - undisturbed.keys()):
        yield f"tokens/{name} is no part of this run"
    for name in sorted(undisturbed.keys() - there):
        yield f"tokens/{name} is missing"
    changed = sorted(name for name, digest in digests(output).items() if undisturbed.get(name, digest) != digest)
    if len(changed) > differ:
        yield f"the bytes of {changed} are not those of an undisturbed run, {differ} may differ"


def _miscounted(output: Path, corpus: Path, place: str) -> Iterator[str]:
    """I1 and I2, and the accounts that were derived from the parts."""
    parts = {path.name: Part.read(path) for path in sorted(output.glob("tokens/*.parquet"))}
    by_url = {part.footer["shard"]["url"]: part for part in parts.values()}
    sources = {f"{place}/{path.name}": path for path in corpus.iterdir()}
    if len(by_url) != len(parts) or by_url.keys() != sources.keys():
        yield f"{len(parts)} parts name the shards {sorted(by_url)}, the corpus has {sorted(sources)}"
        return
    for url, part in by_url.items():
        yield from (f"{url}: {what}" for what in _part_problems(part, url, source_keys(sources[url])))
    summary = json.loads((output / "summary.json").read_text())
    counted = {
        "samples": sum(len(source_keys(path)) for path in sources.values()),
        "rows": sum(len(part.rows) for part in parts.values()),
        "rejects": sum(len(part.rejects) for part in parts.values()),
    }
    if {name: summary[name] for name in counted} != counted:
        yield f"summary.json says {summary}, counted {counted}"
    listed = Counter(
        (row["shard"], row["sample_index"]) for row in pq.read_table(output / "rejects.parquet").to_pylist()
    )
    rejected = Counter((url, index) for url, part in by_url.items() for _, index, *_ in part.rejects)
    if listed != rejected:
        yield f"rejects.parquet lists {sorted(listed)}, the parts hold {sorted(rejected)}"


def _part_problems(part: Part, url: str, keys: list[str]) -> Iterator[str]:
    views = Counter((row["sample_index"], row["view"]) for row in part.rows)
    if twice := [view for view, count in views.items() if count > 1]:
        yield f"rows {twice} come more than once"
    rows = {(row["sample_index"], row["key"]) for row in part.rows}
    rejects = Counter((index, key) for key, index, *_ in part.rejects)
    found = Counter(rows) + rejects
    if found != Counter(enumerate(keys)):
        odd = sorted((found - Counter(enumerate(keys))) + (Counter(enumerate(keys)) - found))
        yield f"samples that are not exactly one of row and reject: {odd}"
    if any(row["shard"] != url for row in part.rows):
        yield "rows name another shard"
    said = {name: part.footer["counts"][name] for name in ("samples", "rows", "rejects")}
    counted = {"samples": len(keys), "rows": len(part.rows), "rejects": len(part.rejects)}
    if said != counted:
        yield f"the footer says {said}, counted {counted}"


@dataclass
class Watcher:
    """I4: a reader beside the run, that looks for parts again and again and reads every one it has not seen.

    Example:
        with Watcher(output) as watcher:
            ...                                  # runs into `output`
        assert not watcher.violations

    Attributes:
        looks: how often it looked.
        seen: the parts it read: name -> (inode, size, time of the last change of the contents in ns).
        violations: what a reader must never see.
    """

    output: Path
    looks: int = 0
    seen: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._watch, name="watcher")
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        self.look()

    def look(self) -> None:
        """List the parts once; read the new ones, compare the known ones."""
        self.looks += 1
        there = {path.name: path for path in self.output.glob("tokens/*.parquet")}
        self.violations += [f"{name} vanished" for name in self.seen.keys() - there.keys()]
        for name, path in there.items():
            try:
                now = path.stat()
                mark = (now.st_ino, now.st_size, now.st_mtime_ns)
                if name not in self.seen:
                    Part.read(path)
            except Exception as error:
                self.violations.append(f"{name} cannot be read: {type(error).__name__}: {error}")
                continue
            if self.seen.setdefault(name, mark) != mark:
                self.violations.append(f"{name} changed from {self.seen[name]} to {mark} (inode, size, time)")

    def _watch(self) -> None:
        while not self._over.wait(WATCH_SECONDS):
            self.look()
