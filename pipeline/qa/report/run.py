"""A run as the report sees it: its accounts in full, its evidence from a bounded number of shards."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from pipeline.errors import TokenmillError, UsageError
from pipeline.output import Output
from pipeline.qa.evidence import DAMAGE
from pipeline.qa.report.frechet import Rfid, read_rfid
from pipeline.qa.report.records import ShardRecord, read_record
from pipeline.qa.report.throughput import Throughput, read_throughput
from pipeline.shards.manifest import shard_id
from pipeline.storage import Blob, Storage
from pipeline.urls import join

MAX_SHARDS = 2000  # whose evidence is read: the mean PSNR of photographs is then known to 0.1 dB
MAX_HISTOGRAM_BYTES = 1 << 30  # of all shards together, unpacked: above 131,072 codes fewer shards are read
READ_THREADS = 16
POSITION_PARTS, POSITION_ROWS = 16, 256  # parts, and rows of each, whose tokens are read
MAX_POSITION_TOKENS = 1 << 23

SUMS = ("samples", "tokenized", "rows", "rejects", "filtered", "bytes")

OnRead = Callable[[int, int], None]  # (files read, files in all)


@dataclass(frozen=True, slots=True)
class Coverage:
    """Which evidence there is, and which of it was read.

    Attributes:
        committed: shards with a part.
        read: shards whose evidence is in the report.
        found: shards with a part and evidence.
        missing: ids of shards with a part and no evidence.
        unreadable: ids of shards whose evidence is damaged, or did not arrive, with the reason.
        foreign: ids of shards whose evidence is of other tokens than the run's.
    """

    committed: int
    read: int
    found: int
    missing: list[str]
    unreadable: dict[str, str]
    foreign: list[str]


@dataclass(frozen=True, slots=True)
class Run:
    """One OUTPUT.

    Attributes:
        state: as `Output.state` tells it: `success`, `shards`, the accounts and the quarantined.
        finished: the accounts are those that the end of the run wrote; else they were counted now.
        gates: findings of the gates as summary.json has them.
        accused: ids of the shards that they are about.
        records: the evidence read, sorted by shard id.
        tokens: some rows' tokens [rows, h * w], of `token_parts` parts.
        rfid: None if no evidence has features.
        throughput: None if the run did not record it.
    """

    url: str
    job: Mapping[str, Any]
    state: Mapping[str, Any]
    finished: bool
    gates: list[dict[str, Any]]
    accused: frozenset[str]
    coverage: Coverage
    records: list[ShardRecord]
    tokens: npt.NDArray[Any]
    token_parts: int
    rfid: Rfid | None
    throughput: Throughput | None

    @property
    def codebook_size(self) -> int:
        return int(self.job["spec"]["codebook_size"])


def read_run(storage: Storage, url: str, on_read: OnRead | None = None) -> Run:
    """Read what the report needs of one OUTPUT, whether its run is finished or not.

    Raises:
        UsageError: there is no run, or its job.json or manifest.parquet is damaged.
        FingerprintMismatch: parts of another run lie in it.
        StorageError: the store did not answer.
    """
    output = Output(storage, url)
    job = output.job()
    if job is None:
        raise UsageError(f"{output.url}: no run here (job.json is missing); name the OUTPUT of a run")
    names = {name: shard.id for shard in output.manifest() for name in (shard.id, shard.url)}
    parts = {name: blob for name, blob in output.parts().items() if name in names}
    state, finished = _state(output, len(set(names.values())), parts, on_read)
    gates = [dict(gate) for gate in state.get("gates", ())]
    accused = frozenset(names[gate["where"]] for gate in gates if gate.get("where") in names)
    listed = storage.list_folder(join(output.url, "qa"), ".parquet")
    evidence = {blob.url.rpartition("/")[2].removesuffix(".parquet"): blob for blob in listed}
    found = evidence.keys() & parts.keys()
    chosen = choose(found, job["spec"]["codebook_size"], accused)
    records, unreadable = _read_all(storage, {name: evidence[name] for name in chosen}, on_read)
    foreign = [record.id for record in records if not _belongs(record, job)]
    records = [record for record in records if _belongs(record, job)]
    missing = sorted(parts.keys() - evidence.keys())
    tokens, token_parts = _some_tokens(storage, parts, job["spec"])
    return Run(
        url=output.url,
        job=job,
        state=state,
        finished=finished,
        gates=gates,
        accused=accused,
        coverage=Coverage(len(parts), len(records), len(found), missing, unreadable, foreign),
        records=records,
        tokens=tokens,
        token_parts=token_parts,
        rfid=read_rfid(storage, output.url, records),
        throughput=read_throughput(storage, output.url),
    )


def choose(names: Iterable[str], codebook_size: int, always: Iterable[str] = ()) -> list[str]:
    """The shards whose evidence is read: those in `always`, then those with the least sha256 of their ids.

    The choice depends on the ids alone, so it is the same on every day and, as far as the shards are, on two runs.
    """
    names = set(names)
    limit = max(1, min(MAX_SHARDS, MAX_HISTOGRAM_BYTES // (4 * codebook_size)))
    first = sorted(names.intersection(always))
    rest = sorted(names.difference(first), key=_hash)
    return sorted((first + rest)[:limit])


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _belongs(record: ShardRecord, job: Mapping[str, Any]) -> bool:
    report = record.report
    return bool(report.fingerprint == job["fingerprint"] and report.codebook_size == job["spec"]["codebook_size"])


# --- the accounts ----------------------------------------------------------------------------------------------------


def _state(
    output: Output, total: int, parts: Mapping[str, Blob], on_read: OnRead | None
) -> tuple[dict[str, Any], bool]:
    """The accounts: summary.json's while it speaks of the parts that are there, else counted from their footers."""
    summary = output.summary() or {}
    shards = summary.get("shards", {})
    is_whole = summary.keys() >= {*SUMS, "rejects_by_reason", "quarantined"}
    if is_whole and (shards.get("committed"), shards.get("total")) == (len(parts), total):
        return {**summary, "success": output.succeeded()}, True
    quarantined = [entry for entry in summary.get("quarantined", []) if shard_id(entry["shard"]) not in parts]
    counted = {
        "success": False,
        "shards": {"total": total, "committed": len(parts), "quarantined": len(quarantined)},
        "quarantined": quarantined,
        "gates": summary.get("gates", []),
        "qa": summary.get("qa", {}),
    }
    return counted | _count(output, parts, on_read), False


def _count(output: Output, parts: Mapping[str, Blob], on_read: OnRead | None) -> dict[str, Any]:
    totals, reasons, rules = Counter[str](), Counter[str](), Counter[str]()
    with closing(output.footers(parts.values())) as footers:
        for number, footer in enumerate(footers, 1):
            totals.update(asdict(footer.counts))
            reasons.update(rejected.reject.reason for rejected in footer.rejects)
            rules.update({rule: len(indices) for rule, indices in footer.filtered.items()})
            if on_read:
                on_read(number, len(parts))
    return {
        **{name: totals[name] for name in SUMS if name != "bytes"},
        "rejects_by_reason": dict(reasons.most_common()),
        "filtered_by_rule": dict(rules.most_common()),
        "bytes": sum(blob.size for blob in parts.values()),
    }


# --- the evidence ----------------------------------------------------------------------------------------------------


def _read_all(
    storage: Storage, blobs: Mapping[str, Blob], on_read: OnRead | None
) -> tuple[list[ShardRecord], dict[str, str]]:
    """The records of some evidence files, and why the others could not be read."""

    def read(name: str) -> ShardRecord | str:
        try:
            return read_record(storage, blobs[name].url)
        except (TokenmillError, *DAMAGE) as error:
            return f"{type(error).__name__}: {error}".splitlines()[0]

    records, unreadable = [], {}
    with ThreadPoolExecutor(READ_THREADS, thread_name_prefix="report") as pool:
        for number, (name, found) in enumerate(zip(blobs, pool.map(read, blobs), strict=True), 1):
            if isinstance(found, str):
                unreadable[name] = found
            else:
                records.append(found)
            if on_read:
                on_read(number, len(blobs))
    return records, unreadable


def _some_tokens(storage: Storage, parts: Mapping[str, Blob], spec: Mapping[str, int]) -> tuple[npt.NDArray[Any], int]:
    """The first rows of some parts, chosen by the hash of their ids: [rows, h * w]; and how many parts they are of."""
    width = spec["grid_height"] * spec["grid_width"]
    if not width:  # grids of several shapes: a place in one is none in another
        return np.empty((0, 0), np.uint32), 0
    rows = max(1, min(POSITION_ROWS, MAX_POSITION_TOKENS // (POSITION_PARTS * width)))
    chosen = sorted(parts, key=_hash)[:POSITION_PARTS]
    with ThreadPoolExecutor(POSITION_PARTS, thread_name_prefix="report") as pool:
        tables = list(pool.map(lambda name: _first_tokens(storage, parts[name].url, rows, width), chosen))
    return np.concatenate([np.empty((0, width), np.uint32), *tables]), sum(len(table) > 0 for table in tables)


def _first_tokens(storage: Storage, url: str, rows: int, width: int) -> npt.NDArray[np.uint32]:
    """[n <= rows, width]; none of a part that cannot be read: to name it is the task of `tokenmill verify`."""
    try:
        with storage.open_random(url) as file:
            batch = next(pq.ParquetFile(file).iter_batches(rows, columns=["tokens"]))
        return np.asarray(batch.column("tokens").flatten().to_numpy(), np.uint32).reshape(-1, width)
    except (StopIteration, TokenmillError, *DAMAGE):
        return np.empty((0, width), np.uint32)
