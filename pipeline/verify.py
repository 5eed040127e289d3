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
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

from pipeline.errors import NotFound, ShardError, ShardFault, TokenmillError, UsageError
from pipeline.recount import Counts, Integers, Part, PartDamaged, Spec, read_part, source_keys
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
    WRONG_GRID = "wrong_grid"  # rows of another grid than the run's
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
        filtered: samples that the user did not want, likewise.
    """

    shard: str
    url: str
    samples: int | None
    rows: int = 0
    rejects: int = 0
    filtered: int = 0


@dataclass(frozen=True, slots=True)
class Verification:
    """The accounts of all shards in the manifest's order, and everything amiss."""

    accounts: list[Account]
    findings: list[Finding]

    @property
    def ok(self) -> bool:
        """Whether every sample is accounted for, once. A leftover of a killed process costs nothing but its bytes."""
        return all(finding.kind is FindingKind.LEFTOVER for finding in self.findings)


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

Fault = tuple[FindingKind, str]


@dataclass(frozen=True, slots=True)
class _Check:
    """Checks shards one by one; safe to share between threads."""

    storage: Storage
    run: _Run
    files: dict[str, Blob]
    source: bool

    def shard(self, shard: _Shard) -> tuple[Account, list[Finding]]:
        """The account of a shard, and what is amiss with it."""
        keys, faults = self._source(shard) if self.source else (None, [])
        samples = None if keys is None else len(keys)
        account = Account(shard.shard_id, shard.url, samples)
        part = self._part(shard)
        if part is None:
            faults = [(FindingKind.MISSING_PART, self._why_missing(shard, samples, faults))]
        elif isinstance(part, Part):
            rows, rejects, filtered = len(part.rows.index), len(part.rejects), len(part.filtered)
            account = replace(account, rows=rows, rejects=rejects, filtered=filtered)
            faults = [*faults, *_compare(part, shard, self.run, keys)]
        else:
            faults = [*faults, part]
        return account, [Finding(kind, shard.url, message) for kind, message in faults]

    def _source(self, shard: _Shard) -> tuple[list[str] | None, list[Fault]]:
        if shard.size is None:
            return None, [(FindingKind.SOURCE_UNREADABLE, "the object was not there when the manifest was frozen")]
        try:
            return source_keys(self.storage, Blob(shard.url, shard.size, shard.etag)), []
        except ShardError as error:
            kind = FindingKind.SOURCE_CHANGED if error.reason is ShardFault.CHANGED else FindingKind.SOURCE_UNREADABLE
            return None, [(kind, f"cannot be recounted: {error}")]
        except (TokenmillError, OSError) as error:
            return None, [(FindingKind.SOURCE_UNREADABLE, f"cannot be recounted now: {error}")]

    def _part(self, shard: _Shard) -> Part | Fault | None:
        """The part, or why it cannot be read, or None if there is none."""
        url = self.run.part_url(shard)
        if url not in self.files:
            return None
        try:
            return read_part(self.storage, self.files[url])
        except PartDamaged as error:
            return FindingKind.DAMAGED_PART, f"{url} is damaged: {error}; {REDO}"
        except (TokenmillError, OSError) as error:
            return FindingKind.UNREADABLE_PART, f"{url} could not be read: {error}; verify again"

    def _why_missing(self, shard: _Shard, samples: int | None, faults: list[Fault]) -> str:
        lost = "its samples" if samples is None else f"its {samples:,} samples"
        reasons = [message for _, message in faults]
        if shard.url in self.run.given_up:
            reasons.insert(0, f"it was quarantined as {self.run.given_up[shard.url]}")
        why = "; ".join(reasons) or "it was never committed, or its part was deleted"
        return f"{self.run.part_url(shard)} does not exist, so {lost} are in no part: {why}; run the same job again"


def _compare(part: Part, shard: _Shard, run: _Run, keys: list[str] | None) -> Iterator[Fault]:
    """Hold a part to the manifest, to job.json, to its own footer and, if `keys` are given, to its source."""
    footer, url = part.footer, run.part_url(shard)
    if footer.fingerprint != run.job.fingerprint or footer.spec != run.job.spec:
        yield (
            FindingKind.WRONG_FINGERPRINT,
            f"{url} holds tokens of another configuration: fingerprint {footer.fingerprint[:12]} ({footer.spec}), "
            f"job.json has {run.job.fingerprint[:12]} ({run.job.spec}); {REDO}",
        )
    if (footer.shard.id, footer.shard.url) != (shard.shard_id, shard.url):
        yield FindingKind.WRONG_SHARD, f"{url} was made of another shard, {footer.shard.url}; {REDO}"
        return  # everything else would differ as well
    if (footer.shard.size, footer.shard.etag) != (shard.size, shard.etag):
        yield (
            FindingKind.SOURCE_CHANGED,
            f"{url} was made of an object of {footer.shard.size} bytes with ETag {footer.shard.etag}, the manifest has "
            f"{shard.size} and {shard.etag}; {REDO}",
        )
    yield from ((kind, f"{url}: {what}; {REDO}") for kind, what in _samples(part, keys))
    yield from ((kind, f"{url}: {what}; {REDO}") for kind, what in _contents(part))
    yield from ((kind, f"{url}: {what}; {REDO}") for kind, what in _keys(part, keys))


def _samples(part: Part, keys: list[str] | None) -> Iterator[Fault]:
    """Whether rows, rejects and what was not wanted are together every sample, once."""
    index, view = part.rows.index, part.rows.view
    rejected, left_out = _rejected(part), part.filtered
    tokenized, present = np.unique(index), np.unique(np.concatenate([index, rejected, left_out]))
    found = Counts(
        samples=len(present), tokenized=len(tokenized), rows=len(index), rejects=len(rejected), filtered=len(left_out)
    )
    if found != part.footer.counts:
        yield FindingKind.UNBALANCED, f"its footer counts {part.footer.counts}, it holds {found}"
    samples = part.footer.counts.samples if keys is None else len(keys)
    if (missing := _gaps(present, samples)).count:
        yield FindingKind.MISSING_SAMPLES, f"neither row nor reject nor filtered: {missing}"
    if (unknown := _runs(present[present >= samples])).count:
        yield FindingKind.UNKNOWN_SAMPLES, f"beyond the {samples:,} samples of the shard: {unknown}"
    span = view.max(initial=0) + 1
    pairs, times = np.unique(index * span + view, return_counts=True)
    elsewhere = _repeats(np.concatenate([tokenized, rejected, left_out]))
    if (double := _runs(np.concatenate([pairs[times > 1] // span, elsewhere]))).count:
        yield FindingKind.DUPLICATE_SAMPLES, f"more than once a row, a reject or filtered: {double}"
    views = np.unique(pairs // span, return_counts=True)[1]
    if (short := _runs(tokenized[views < span])).count:
        yield FindingKind.MISSING_VIEWS, f"fewer than {span} views: {short}"


def _contents(part: Part) -> Iterator[Fault]:
    rows, spec = part.rows, part.footer.spec
    if (elsewhere := _runs(rows.wrong_shard)).count:
        yield FindingKind.WRONG_SHARD, f"rows that name another shard: {elsewhere}"
    if (off_grid := _runs(rows.wrong_grid)).count:
        right = "the number of their tokens" if spec.varies else f"{spec.grid_height} x {spec.grid_width}"
        yield FindingKind.WRONG_GRID, f"grids that are not {right}: {off_grid}"
    if (outside := _runs(rows.wrong_tokens)).count:
        yield FindingKind.INDEX_OUT_OF_RANGE, f"tokens outside [0, {spec.codebook_size:,}): {outside}"


def _keys(part: Part, keys: list[str] | None) -> Iterator[Fault]:
    """Whether every sample has the key at its place in the source, and no key comes twice."""
    index = np.concatenate([part.rows.index, _rejected(part)])
    named = pa.concat_arrays([part.rows.keys, pa.array([reject.key for reject in part.rejects], pa.string())])
    if keys is not None:
        known = index < len(keys)
        there = pa.array(keys, pa.string()).take(pa.array(index[known]))
        differs = pc.not_equal(named.filter(pa.array(known)), there).to_numpy(zero_copy_only=False)
        if (wrong := _runs(index[known][differs])).count:
            yield FindingKind.WRONG_KEY, f"keys that are not those of the shard, at {wrong}"
            return
    codes = named.dictionary_encode().indices.to_numpy()
    used, code = np.unique(np.stack([index, codes]), axis=1)
    shared = np.isin(code, _repeats(code)) | np.isin(used, _repeats(used))
    if (several := _runs(used[shared])).count:
        yield FindingKind.WRONG_KEY, f"one key in several samples, or several in one: {several}"


def _rejected(part: Part) -> Integers:
    return np.array([reject.sample_index for reject in part.rejects], np.int64)


def _repeats(numbers: Integers) -> Integers:
    """The numbers that occur more than once."""
    values, times = np.unique(numbers, return_counts=True)
    return values[times > 1]


@dataclass(frozen=True, slots=True)
class _Runs:
    """A set of sample indices as runs first..last, however many they are."""

    first: Integers
    last: Integers

    @property
    def count(self) -> int:
        return int((self.last - self.first + 1).sum())

    def __str__(self) -> str:
        shown = zip(self.first[:SHOWN].tolist(), self.last[:SHOWN].tolist(), strict=True)
        text = ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in shown)
        more = ", ..." if len(self.first) > SHOWN else ""
        return f"{self.count:,} of its samples (sample_index {text}{more})"


def _runs(indices: Integers) -> _Runs:
    """The runs of some indices."""
    distinct = np.unique(indices)
    breaks = np.diff(distinct) > 1
    return _Runs(distinct[np.append(True, breaks)[: len(distinct)]], distinct[np.append(breaks, True)[: len(distinct)]])


def _gaps(present: Integers, samples: int) -> _Runs:
    """The runs of 0..samples-1 that are not in `present`, which is sorted."""
    edges = np.concatenate([[-1], present[present < samples], [samples]])
    wide = np.flatnonzero(np.diff(edges) > 1)
    return _Runs(edges[wide] + 1, edges[wide + 1] - 1)
