"""Recount a run: is every sample of every shard a row or a reject, once?

`verify` shares no code with what wrote the parts: `recount` reads parts and sources its own way, and what both say is
compared here. Everything amiss becomes a `Finding` in words; damage never ends the verification.
"""

import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

from pipeline.errors import NotFound, ShardError, ShardFault, TokenmillError, UsageError
from pipeline.recount import Integers, Part, PartDamaged, Spec, read_part, source_keys
from pipeline.storage import Blob, Storage
from pipeline.urls import join

SHOWN = 5  # sample numbers or keys that one message lists
REDO = "delete it and run the same job again"


class FindingKind(StrEnum):
    """What can be amiss; scripts rely on the words."""

    MISSING_PART = "missing_part"  # a shard of the manifest has no part
    FOREIGN_PART = "foreign_part"  # a file under tokens/ belongs to no shard of the manifest
    LEFTOVER = "leftover"  # a hidden temporary file under tokens/: readers do not see it, a killed process left it
    DAMAGED_PART = "damaged_part"  # a part cannot be read
    UNREADABLE_PART = "unreadable_part"  # the store did not give it: nothing is known
    WRONG_FINGERPRINT = "wrong_fingerprint"  # tokens of another model, recipe or precision
    WRONG_SHARD = "wrong_shard"  # a part or rows of it were made of another shard
    UNBALANCED = "unbalanced"  # the counts in a footer are not those of its part
    MISSING_SAMPLES = "missing_samples"  # neither row nor reject
    DUPLICATE_SAMPLES = "duplicate_samples"  # a row or reject twice, or both
    UNKNOWN_SAMPLES = "unknown_samples"  # beyond the end of the shard
    MISSING_VIEWS = "missing_views"  # a sample has fewer views than others
    WRONG_KEY = "wrong_key"  # a key is not the one at that place of the shard, or belongs to two samples
    WRONG_GRID = "wrong_grid"  # tokens that do not fill the grid
    INDEX_OUT_OF_RANGE = "index_out_of_range"  # tokens outside [0, codebook_size)
    SOURCE_CHANGED = "source_changed"  # the shard is not the object that was frozen in the manifest
    SOURCE_UNREADABLE = "source_unreadable"  # the shard is missing or damaged, so nothing could be recounted
    DUPLICATE_SHARD = "duplicate_shard"  # the manifest names a shard twice


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing amiss.

    Attributes:
        shard: URL of the shard, or of the file under tokens/ that belongs to none.
        message: what is wrong, where, and what to do.
    """

    kind: FindingKind
    shard: str
    message: str


@dataclass(frozen=True, slots=True)
class Account:
    """What was counted for one shard.

    Attributes:
        shard: its id.
        samples: recounted from the source; None if that was not read, or could not be.
        rows: in its part; 0 if there is no readable part.
        rejects: likewise.
    """

    shard: str
    url: str
    samples: int | None
    rows: int = 0
    rejects: int = 0


@dataclass(frozen=True, slots=True)
class Verification:
    """The accounts of all shards in the manifest's order, and everything amiss."""

    accounts: list[Account]
    findings: list[Finding]

    @property
    def ok(self) -> bool:
        """Whether every sample is accounted for, once."""
        return not self.findings


def verify(
    storage: Storage,
    output_url: str,
    *,
    source: bool = True,
    threads: int = 4,
    on_shard: Callable[[int, int], None] | None = None,
) -> Verification:
    """Recount every shard of a run.

    Args:
        storage: access to OUTPUT and to the shards.
        output_url: OUTPUT of the run.
        source: read the shards too and compare every key; else the parts are held to their own footers only.
        threads: shards read at once.
        on_shard: called with (shards done, shards in all) after each.

    Raises:
        UsageError: OUTPUT holds no run, or its job.json or manifest.parquet is damaged.
        StorageError: the store did not answer.
    """
    run = _load(storage, output_url)
    files = {blob.url: blob for blob in storage.list_folder(run.tokens)}
    check = _Check(storage, run, files, source)
    accounts: list[Account] = []
    findings = [*_repeated(run)]
    with ThreadPoolExecutor(threads, thread_name_prefix="verify") as pool:
        for account, found in pool.map(check.shard, run.shards):
            accounts.append(account)
            findings += found
            if on_shard:
                on_shard(len(accounts), len(run.shards))
    findings += _foreign(run, files)
    return Verification(accounts, findings)


# --- what the run says of itself -------------------------------------------------------------------------------------


class _Job(BaseModel):
    """What is needed of job.json."""

    fingerprint: str
    spec: Spec


@dataclass(frozen=True, slots=True)
class _Shard:
    """One line of the manifest."""

    shard_id: str
    url: str
    size: int | None
    etag: str | None


@dataclass(frozen=True, slots=True)
class _Run:
    """`given_up` has the reason in words for the URL of each quarantined shard."""

    tokens: str
    job: _Job
    shards: list[_Shard]
    given_up: dict[str, str]

    def part_url(self, shard: _Shard) -> str:
        return f"{self.tokens}/{shard.shard_id}.parquet"


def _load(storage: Storage, output_url: str) -> _Run:
    job_url, manifest_url = join(output_url, "job.json"), join(output_url, "manifest.parquet")
    try:
        job = _Job.model_validate_json(storage.read(job_url))
        table = pq.read_table(io.BytesIO(storage.read(manifest_url)))
        shards = [_Shard(**row) for row in table.select(["shard_id", "url", "size", "etag"]).to_pylist()]
    except NotFound as error:
        raise UsageError(f"{output_url}: no run to verify here ({error}); name the OUTPUT of a run") from error
    except ValidationError as error:
        raise UsageError(f"{job_url} is damaged or no job.json of a run: restore it, or run the job again") from error
    except (pa.ArrowException, OSError, KeyError) as error:
        raise UsageError(f"{manifest_url} is damaged ({error}); restore it, or run the job again") from error
    return _Run(join(output_url, "tokens"), job, shards, _given_up(storage, output_url))


def _given_up(storage: Storage, output_url: str) -> dict[str, str]:
    with suppress(NotFound, ValueError, TypeError, KeyError):  # derived, and only lends words to findings
        summary = json.loads(storage.read(join(output_url, "summary.json")))
        return {entry["shard"]: f"{entry['reason']}: {entry['message']}" for entry in summary["quarantined"]}
    return {}


def _repeated(run: _Run) -> Iterator[Finding]:
    for url, times in Counter(shard.url for shard in run.shards).items():
        if times > 1:
            message = f"manifest.parquet names it {times} times, so its samples may be in {times} parts; restore it"
            yield Finding(FindingKind.DUPLICATE_SHARD, url, message)


def _foreign(run: _Run, files: dict[str, Blob]) -> Iterator[Finding]:
    for url in sorted(files.keys() - {run.part_url(shard) for shard in run.shards}):
        if url.rpartition("/")[2].startswith("."):
            message = "a temporary file of a killed process; delete it once no run is at work here"
            yield Finding(FindingKind.LEFTOVER, url, message)
        else:
            message = "belongs to no shard of manifest.parquet, but readers of tokens/ will take it in; move it away"
            yield Finding(FindingKind.FOREIGN_PART, url, message)


# --- one shard -------------------------------------------------------------------------------------------------------

_Fault = tuple[FindingKind, str]


@dataclass(frozen=True, slots=True)
class _Check:
    """Checks shards one by one; safe to share between threads."""

    storage: Storage
    run: _Run
    files: dict[str, Blob]
    source: bool

    def shard(self, shard: _Shard) -> tuple[Account, list[Finding]]:
        """The account of a shard, and what is amiss with it."""
        keys, faults = self._keys(shard) if self.source else (None, [])
        samples = None if keys is None else len(keys)
        part, part_faults = self._part(shard, samples, faults)
        if part is None:
            account = Account(shard.shard_id, shard.url, samples)
            faults = part_faults
        else:
            account = Account(shard.shard_id, shard.url, samples, len(part.rows.index), len(part.rejects))
            faults = [*faults, *_compare(part, shard, self.run, keys)]
        return account, [Finding(kind, shard.url, message) for kind, message in faults]
