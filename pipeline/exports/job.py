"""An export: units to files, each published once; then the accounts, and what stands beside the units.

    TO/...                          what the format holds
    TO/_tokenmill/export.json       what is exported, and how it is cut: claimed before the first unit
    TO/_tokenmill/units/NNNNNN.json receipt of a unit, published after its files
    TO/_tokenmill/_SUCCESS          written last

An export begins in an empty place, so that nothing of somebody else's can be taken for its files. A unit's files depend
on `export.json` alone, and each is published by a create-if-absent: a file that is there already must have the same
bytes. So a unit that is done twice, or half by a process that died, ends in the same files; one that has its receipt is
not done again.
"""

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from glob import escape
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

from pipeline.commit import publish
from pipeline.errors import AlreadyExists, RunFailed, UsageError
from pipeline.exports import FORMATS
from pipeline.exports.format import Format, Note, Unit
from pipeline.exports.source import Source
from pipeline.scratch import draft_folder
from pipeline.storage import Storage
from pipeline.tokens.schema import canonical_json
from pipeline.urls import canonical, join

FOLDER = "_tokenmill"
THREADS = 16  # small requests at once
COPY_BYTES = 8 << 20


class ExportConfig(BaseModel):
    """What to export, in which layout, and where to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str = Field(..., description=f"one of {', '.join(FORMATS)}")
    to: str = Field(..., description="folder or URL that receives the export; made if it is not there")
    view: int | None = Field(None, ge=0, description="export this view of each sample alone; null exports all")
    rows_per_file: int | None = Field(None, gt=0, description="rows of one unit of work; null as the format likes it")
    name: str = Field("", description="of the model, where file names hold it (open-muse); empty takes job.json's")


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a unit.

    Attributes:
        number: of the unit.
        rows: written.
        files: folder -> how many files, and bytes of all of them.
        note: for the index.
    """

    number: int
    rows: int
    files: dict[str, tuple[int, int]]
    note: Note


@dataclass(frozen=True, slots=True)
class Work:
    """What every unit of an export needs. Picklable."""

    source: Source
    format: Format
    to: str


class Runner(Protocol):
    """Does something for each of many units, in any order, several at once."""

    def __call__(
        self, function: Callable[[Work, Unit], Receipt], work: Work, units: Sequence[Unit], /
    ) -> Iterator[Receipt]:
        """The results, as they come."""
        ...


def one_by_one(function: Callable[[Work, Unit], Receipt], work: Work, units: Sequence[Unit], /) -> Iterator[Receipt]:
    """A `Runner` in this thread."""
    return (function(work, unit) for unit in units)


@dataclass(frozen=True, slots=True)
class Exported:
    """A finished export.

    Attributes:
        rows: that it has.
        units: pieces of work that it was made in.
        files, bytes: that these wrote.
    """

    rows: int
    units: int
    files: int
    bytes: int


def export(
    source: Source,
    config: ExportConfig,
    run: Runner = one_by_one,
    on_unit: Callable[[int, int], object] = lambda _done, _of: None,
) -> Exported:
    """Export a run, or go on with it. May be interrupted anywhere.

    Args:
        source: the run.
        config: how, and where to.
        run: does the units.
        on_unit: called with (units done, units in all).

    Raises:
        UsageError: the format cannot hold this run, or something else lies there.
        RunFailed: the accounts do not close.
    """
    if config.format not in FORMATS:
        raise UsageError(f"--format must be one of {', '.join(FORMATS)}, got {config.format!r}")
    layout, to = FORMATS[config.format](config.name), canonical(config.to)
    layout.check(source)
    units = plan(source, layout, config.rows_per_file)
    _claim(source, config, len(units), to)
    done = _receipts(source.storage, to)
    on_unit(len(done), len(units))
    for receipt in run(write_unit, Work(source, layout, to), [unit for unit in units if unit.number not in done]):
        done[receipt.number] = receipt
        on_unit(len(done), len(units))
    _finish(source, layout, to, [done[unit.number] for unit in units])
    files = [told for receipt in done.values() for told in receipt.files.values()]
    return Exported(source.rows, len(units), sum(count for count, _ in files), sum(size for _, size in files))


def plan(source: Source, layout: Format, rows_per_file: int | None) -> list[Unit]:
    """The rows of a run cut into units: at its parts or samples where the format wants it."""
    if layout.unit_per_part and rows_per_file is None:
        cuts = [0, *accumulate(source.part_rows)]
    else:
        multiple = source.views if layout.samples_whole else 1
        rows = rows_per_file or layout.rows_per_unit(source)
        rows = max(1, -(-rows // multiple)) * multiple
        cuts = [*range(0, source.rows, rows), source.rows]
    return [Unit(number, len(cuts) - 1, start, stop) for number, (start, stop) in enumerate(pairwise(cuts))]


def write_unit(work: Work, unit: Unit) -> Receipt:
    """Write and publish one unit.

    Raises:
        UsageError: a row does not fit the format, or something else lies in the place of one of its files.
        RunFailed: another number of rows was written than the unit has.
    """
    storage = work.source.storage
    with draft_folder() as folder, ThreadPoolExecutor(THREADS) as pool:
        rows, note = work.format.write(work.source, unit, folder)
        if rows != unit.rows:
            raise RunFailed(f"unit {unit.number} of the export has {unit.rows} rows, and {rows} were written")
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        names = [path.relative_to(folder).as_posix() for path in paths]
        list(pool.map(lambda path, name: _publish(storage, path, join(work.to, name)), paths, names))
        files: dict[str, tuple[int, int]] = {}
        for path, name in zip(paths, names, strict=True):
            count, size = files.get(name.rpartition("/")[0], (0, 0))
            files[name.rpartition("/")[0]] = count + 1, size + path.stat().st_size
        receipt = Receipt(unit.number, rows, files, note)
        path = folder / "receipt"
        path.write_bytes(canonical_json(asdict(receipt)))
        _publish(storage, path, _receipt_url(work.to, unit.number))
    return receipt


def _claim(source: Source, config: ExportConfig, units: int, to: str) -> None:
    """Write export.json if there is none, else see that it describes this export.

    Raises:
        UsageError: it describes another one, or there is none and the place is not empty.
    """
    wanted = {
        "version": 2,
        "format": config.format,
        "view": config.view,
        "name": config.name,
        "rows_per_file": config.rows_per_file,
        "data": source.parts.digest,
        "fingerprint": source.job["fingerprint"],
        "rows": source.rows,
        "units": units,
    }
    url = join(to, FOLDER, "export.json")
    if not source.storage.exists(url):
        _check_empty(source.storage, to, url)
        with draft_folder() as folder, suppress(AlreadyExists):
            path = folder / "export.json"
            path.write_text(json.dumps(wanted, indent=2))
            publish(source.storage, path, url)
    there = json.loads(source.storage.read(url))
    if differing := [f"{name}: {there.get(name)!r} there, {wanted[name]!r} here" for name in wanted
                     if there.get(name) != wanted[name]]:  # fmt: skip
        raise UsageError(f"{to} holds another export ({'; '.join(differing)}); give another --to, or empty it")


def _check_empty(storage: Storage, to: str, claim: str) -> None:
    """See that nothing lies where an export is to begin: readers of most formats take whatever file they find."""
    found = storage.glob(f"{escape(to)}/**")
    if found and not storage.exists(claim):  # else the same export was begun by somebody else a moment ago
        raise UsageError(
            f"--to must be an empty or new folder, got {to}, which holds {found[0].url.removeprefix(to + '/')} and "
            f"{len(found) - 1} more files; give another --to"
        )


def _publish(storage: Storage, path: Path, url: str) -> None:
    """Publish a file of an export. An equal one may be there, from an attempt that did not come to its receipt.

    Raises:
        UsageError: another one is there.
    """
    try:
        publish(storage, path, url)
    except AlreadyExists:
        if not _same(storage, path, url):
            raise UsageError(
                f"{url}: is not the file that this export would write; was it put there meanwhile, or was the export "
                "begun by another version? Give another --to, or empty it"
            ) from None


def _same(storage: Storage, path: Path, url: str) -> bool:
    """Whether an object has the bytes of a file."""
    with storage.open_random(url) as there, open(path, "rb") as here:
        while data := here.read(COPY_BYTES):
            if there.read(COPY_BYTES) != data:
                return False
        return not there.read(1)


def _receipt_url(to: str, number: int) -> str:
    return join(to, FOLDER, "units", f"{number:06d}.json")


def _receipts(storage: Storage, to: str) -> dict[int, Receipt]:
    """The receipts that are there, by number of the unit."""

    def read(url: str) -> Receipt:
        told = json.loads(storage.read(url))
        return Receipt(**told | {"files": {folder: (n, size) for folder, (n, size) in told["files"].items()}})

    urls = [blob.url for blob in storage.list_folder(join(to, FOLDER, "units"), ".json")]
    with ThreadPoolExecutor(THREADS) as pool:
        return {receipt.number: receipt for receipt in pool.map(read, urls)}


def _finish(source: Source, layout: Format, to: str, receipts: Sequence[Receipt]) -> None:
    """Close the accounts, join what is to be one file, and write what stands beside the units."""
    storage = source.storage
    if storage.exists(join(to, FOLDER, "_SUCCESS")):
        return
    written = sum(receipt.rows for receipt in receipts)
    if written != source.rows:
        raise RunFailed(f"{to}: the accounts do not close: {source.rows} rows in the run, {written} exported")
    beside = layout.finish(source, [receipt.note for receipt in receipts])
    pieces = {name: pattern for name, pattern in layout.joins.items() if _matching(storage, to, pattern)}
    if not _joined(storage, to, layout, receipts):
        _check_files(storage, to, receipts, {*beside, *layout.joins})
        for name, pattern in pieces.items():
            _join(storage, to, name, pattern)
    for name, data in beside.items():
        storage.write(join(to, name), data)
    for pattern in pieces.values():
        for url in _matching(storage, to, pattern):
            storage.delete(url)
    storage.write(join(to, FOLDER, "_SUCCESS"), b"")


def _joined(storage: Storage, to: str, layout: Format, receipts: Iterable[Receipt]) -> bool:
    """Whether an attempt that died later had joined the pieces: some of them are gone, all their bytes are there."""
    folders = {pattern.rpartition("/")[0] for pattern in layout.joins.values()}
    told = [told for receipt in receipts for folder, told in receipt.files.items() if folder in folders]
    left = sum(len(storage.list_folder(join(to, folder))) for folder in folders)
    there = sum(blob.size for blob in storage.list_folder(to) if blob.url.rpartition("/")[2] in layout.joins)
    return left < sum(count for count, _ in told) and there == sum(size for _, size in told)


def _check_files(storage: Storage, to: str, receipts: Iterable[Receipt], beside: Collection[str]) -> None:
    """See that the store holds as many files and bytes as the receipts tell.

    Args:
        storage, to: where.
        receipts: of all units.
        beside: names of files directly in `to` that are of no unit.
    """
    told: Counter[tuple[str, str]] = Counter()
    for receipt in receipts:
        for folder, (count, size) in receipt.files.items():
            told[folder, "files"] += count
            told[folder, "bytes"] += size
    for folder in sorted({folder for folder, _ in told}):
        place = join(to, folder) if folder else to
        names = {blob.url.removeprefix(f"{place}/"): blob for blob in storage.list_folder(place)}
        blobs = [blob for name, blob in names.items() if not name.startswith(".") and (folder or name not in beside)]
        found = {"files": len(blobs), "bytes": sum(blob.size for blob in blobs)}
        for what, number in found.items():
            if number != told[folder, what]:
                raise RunFailed(
                    f"{place}: {told[folder, what]} {what} were written and {number} are there, so some are gone or "
                    "of somebody else; give another --to"
                )


def _join(storage: Storage, to: str, name: str, pattern: str) -> None:
    """Make one file of several, in the order of their names."""
    with draft_folder() as folder:
        path = folder / "joined"
        with open(path, "wb") as whole:
            for url in _matching(storage, to, pattern):
                with storage.open_random(url) as piece:
                    while data := piece.read(COPY_BYTES):
                        whole.write(data)
        _publish(storage, path, join(to, name))


def _matching(storage: Storage, to: str, pattern: str) -> list[str]:
    folder, _, name = pattern.rpartition("/")
    blobs = storage.list_folder(join(to, folder))
    return [blob.url for blob in blobs if fnmatchcase(blob.url.rpartition("/")[2], name)]
