"""What a run leaves in OUTPUT, and everything that can be derived from it.

    README.md   job.json   manifest.parquet   tokens/<shard_id>.parquet   rejects.parquet   summary.json   _SUCCESS

Only `tokens/` is truth: a shard is done if its part can be listed. The rest is written before the first part (job.json,
manifest.parquet) or can be rebuilt from the parts' footers at any time (README.md, rejects.parquet, summary.json).
"""

import json
from collections import Counter
from collections.abc import Callable, Container, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import asdict
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.card import dataset_card, sources_of
from pipeline.commit import publish
from pipeline.errors import AlreadyExists, FingerprintMismatch, NotFound, UsageError
from pipeline.fingerprint import differences
from pipeline.scratch import draft_folder
from pipeline.shards.frozen import extend_manifest, read_manifest
from pipeline.shards.manifest import Shard, shard_id
from pipeline.storage import Blob, Storage
from pipeline.tokens.reader import read_footer, read_schema
from pipeline.tokens.schema import PartFooter, RejectedSample
from pipeline.urls import canonical, join

OnPart = Callable[[int, int], None]  # (parts done, parts in all)
Judge = Callable[[Mapping[str, Any]], Iterable[Mapping[str, Any]]]  # from the accounts to findings

FOOTER_THREADS = 16
FOOTERS_AHEAD = 1000  # in memory at once
REJECT_SCHEMA = pa.schema(
    [("key", pa.string()), ("shard", pa.string()), ("sample_index", pa.uint32())]
    + [(name, pa.string()) for name in ("stage", "reason", "detail")]
)


class Output:
    """One OUTPUT."""

    def __init__(self, storage: Storage, output: str) -> None:
        self.storage, self.url = storage, canonical(output)

    # --- before the first part ---

    def claim(self, job: dict[str, Any], *, overwrite: bool = False) -> dict[str, Any]:
        """Write job.json if there is none, else check that it describes the same tokens; returns the one that counts.

        Args:
            job: what this run would write.
            overwrite: the store has no create-if-absent, and the user accepted that.

        Raises:
            FingerprintMismatch: OUTPUT holds another configuration's tokens; the message names what differs.
        """
        if self.job() is not None:
            return self._agree(job)
        self._accounts(list(self.parts().values()), job["fingerprint"])  # parts without a job.json: are they ours?
        with draft_folder() as folder:
            path = folder / "job.json"
            path.write_text(json.dumps(job, indent=2, sort_keys=True))
            with suppress(AlreadyExists):  # another driver was faster
                publish(self.storage, path, join(self.url, "job.json"), overwrite=overwrite)
        return self._agree(job)

    def job(self) -> dict[str, Any] | None:
        """The job.json, None if OUTPUT has none.

        Raises:
            UsageError: it is damaged.
        """
        try:
            data = self.storage.read(join(self.url, "job.json"))
        except NotFound:
            return None
        try:
            document = json.loads(data)
            document["fingerprint"], document["identity"]
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{self.url}/job.json is damaged; restore it, or choose another output") from error
        return dict(document)

    def extend_manifest(self, shards: Iterable[Shard], refrozen: Container[str] = ()) -> list[Shard]:
        """Add shards to the frozen manifest; a frozen shard keeps the size and ETag it had, unless it is in `refrozen`.

        Args:
            shards: as they are now.
            refrozen: ids of shards without a part, that were missing or bad before.

        Returns:
            The whole manifest; it may have shards that another driver added meanwhile.
        """
        return extend_manifest(self.storage, self.url, shards, refrozen)

    def manifest(self) -> list[Shard]:
        """The frozen shards; none if nothing has been frozen yet."""
        return read_manifest(self.storage, self.url)

    def reopen(self) -> None:
        """There is work to do again: take back _SUCCESS, and sweep what killed processes left beside the parts."""
        self.take_back_success()
        for blob in self.storage.list_folder(join(self.url, "tokens"), ".tmp"):
            self.storage.delete(blob.url)

    # --- the parts ---

    def parts(self) -> dict[str, Blob]:
        """The committed parts by shard id."""
        blobs = self.storage.list_folder(join(self.url, "tokens"), ".parquet")
        return {blob.url.rpartition("/")[2].removesuffix(".parquet"): blob for blob in blobs}

    def footers(self, parts: Iterable[Blob]) -> Generator[PartFooter, None, None]:
        """The footers of parts, in the order given.

        Raises:
            NotAPart: one of them is no part of ours.
        """
        waiting, pool = iter(parts), ThreadPoolExecutor(FOOTER_THREADS)
        try:
            while some := list(islice(waiting, FOOTERS_AHEAD)):
                yield from pool.map(lambda blob: read_footer(self.storage, blob.url), some)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # who stops early does not wait for a store that is down

    def with_rejects(self, parts: Mapping[str, Blob]) -> list[str]:
        """The shard ids of the parts that have rejects."""
        return [footer.shard["id"] for footer in self.footers(parts.values()) if footer.rejects]

    def given_up(self) -> dict[str, dict[str, str]]:
        """Shard id -> {kind, reason, message} of the shards that the last run quarantined through their own fault."""
        failures = (self.summary() or {}).get("quarantined", [])
        words = ("kind", "reason", "message")
        return {
            shard_id(failure["shard"]): {name: failure[name] for name in words}
            for failure in failures
            if failure.keys() >= {"shard", *words} and failure["kind"] == "task"
        }

    # --- what is derived from them ---

    def summarise(
        self,
        manifest: list[Shard],
        quarantined: Mapping[str, Mapping[str, str]],
        on_part: OnPart | None = None,
        judge: Judge | None = None,
    ) -> dict[str, Any]:
        """The accounts of all committed parts; writes rejects.parquet, summary.json and README.md.

        Args:
            manifest: the frozen shards.
            quarantined: shard id -> {kind, reason, message} of the shards given up.
            on_part: called with (parts read, parts in all) after each; if it raises, nothing is written.
            judge: from the accounts to the gates that failed: {gate, where, value, limit, message}.
        """
        parts, job = self.parts(), self.job()
        done = [parts[shard.id] for shard in manifest if shard.id in parts]
        with draft_folder() as folder:
            path = folder / "rejects.parquet"
            with pq.ParquetWriter(path, REJECT_SCHEMA, compression="zstd") as rejects:
                accounts = self._accounts(done, job["fingerprint"] if job else None, rejects, on_part)
            self.storage.put(join(self.url, "rejects.parquet"), path)
        urls = {shard.id: shard.url for shard in manifest}
        summary = {
            "shards": {"total": len(manifest), "committed": accounts.pop("parts"), "quarantined": len(quarantined)},
            **accounts,
            "sources": sources_of(urls[shard.id] for shard in manifest if shard.id in parts),
            "quarantined": [{"shard": urls[shard], **failure} for shard, failure in sorted(quarantined.items())],
            "gates": list(judge(accounts)) if judge else [],
        }
        self.storage.write(join(self.url, "summary.json"), json.dumps(summary, indent=2).encode())
        if job is not None:
            schema = read_schema(self.storage, done[0].url) if done else None
            self.storage.write(join(self.url, "README.md"), dataset_card(job, summary, schema).encode())
        return summary

    def state(self) -> dict[str, Any]:
        """How far the run is, from OUTPUT alone: the accounts of the parts that are there now.

        Raises:
            UsageError: OUTPUT holds no run.
        """
        job = self.job()
        if job is None:
            raise UsageError(f"{self.url}: no run here (job.json is missing)")
        manifest, last = self.manifest(), self.summary() or {}
        parts = self.parts()
        quarantined = [failure for failure in last.get("quarantined", []) if shard_id(failure["shard"]) not in parts]
        accounts = self._accounts([parts[shard.id] for shard in manifest if shard.id in parts], job["fingerprint"])
        shards = {"total": len(manifest), "committed": accounts.pop("parts"), "quarantined": len(quarantined)}
        return {
            "success": self.succeeded(),
            "fingerprint": job["fingerprint"],
            "shards": shards,
            **accounts,
            "quarantined": quarantined,
        }

    def summary(self) -> dict[str, Any] | None:
        """The last summary.json, None if there is none, or none that can be read: nothing depends on it."""
        try:
            return dict(json.loads(self.storage.read(join(self.url, "summary.json"))))
        except (NotFound, ValueError):
            return None

    def succeed(self, manifest: Sequence[Shard]) -> int:
        """Write _SUCCESS: every shard of the manifest, as it was read, is committed.

        Another driver may add shards between that reading and this writing. It takes _SUCCESS back after it has added
        them, and here the manifest is read again after _SUCCESS is written: whoever comes last sees the other.

        Returns:
            How many shards without a part there are by now; _SUCCESS is not left there if there is one.
        """
        self.storage.write(join(self.url, "_SUCCESS"), b"")
        known = {shard.id for shard in manifest}
        added = {shard.id for shard in self.manifest()} - known
        waiting = len(added - self.parts().keys()) if added else 0
        if waiting:
            self.take_back_success()
        return waiting

    def take_back_success(self) -> None:
        """Not every shard is committed any more, or soon."""
        self.storage.delete(join(self.url, "_SUCCESS"))

    def succeeded(self) -> bool:
        """Whether the last run finished with every shard committed."""
        return self.storage.exists(join(self.url, "_SUCCESS"))

    def _accounts(
        self,
        parts: list[Blob],
        fingerprint: str | None,
        rejects: pq.ParquetWriter | None = None,
        on_part: OnPart | None = None,
    ) -> dict[str, Any]:
        """The sums over the footers of `parts`; the rejected samples are written to `rejects`.

        Raises:
            FingerprintMismatch: a part was made another way, or for another shard.
        """
        totals, reasons, rules, warnings = (Counter[str]() for _ in range(4))
        with closing(self.footers(parts)) as footers:
            for number, (blob, footer) in enumerate(zip(parts, footers, strict=True), 1):
                _check_part(blob, footer, fingerprint)
                totals.update(asdict(footer.counts))
                warnings.update(footer.warnings)
                reasons.update(rejected.reject.reason for rejected in footer.rejects)
                rules.update({rule: len(indices) for rule, indices in footer.filtered.items()})
                if rejects is not None and footer.rejects:
                    rows = [_reject_row(footer, rejected) for rejected in footer.rejects]
                    rejects.write_table(pa.Table.from_pylist(rows, REJECT_SCHEMA))
                if on_part:
                    on_part(number, len(parts))
        return {
            "parts": len(parts),
            **{name: totals[name] for name in ("samples", "tokenized", "rows", "rejects", "filtered")},
            "filtered_by_rule": dict(rules.most_common()),
            "rejects_by_reason": dict(reasons.most_common()),
            "warnings": dict(warnings),
            "bytes": sum(blob.size for blob in parts),
        }

    def _agree(self, job: dict[str, Any]) -> dict[str, Any]:
        there = self.job()
        if there is None:
            raise UsageError(f"{self.url}/job.json vanished while it was read; run again")
        if there["fingerprint"] != job["fingerprint"]:
            lines = "\n".join(f"  {line}" for line in differences(there["identity"], job["identity"]))
            raise FingerprintMismatch(
                f"{self.url} holds tokens made another way, and a dataset must not mix two:\n{lines}\n"
                "choose another --output, or go back to the configuration above"
            )
        return there


def _check_part(blob: Blob, footer: PartFooter, fingerprint: str | None) -> None:
    name = blob.url.rpartition("/")[2].removesuffix(".parquet")
    if fingerprint not in (None, footer.fingerprint) or footer.shard["id"] != name:
        raise FingerprintMismatch(
            f"{blob.url} holds tokens of another run (shard {footer.shard['id']}, fingerprint "
            f"{footer.fingerprint[:12]}); `tokenmill verify` lists all such parts: move them away"
        )


def _reject_row(footer: PartFooter, rejected: RejectedSample) -> dict[str, Any]:
    return {
        "key": rejected.key,
        "shard": footer.shard["url"],
        "sample_index": rejected.sample_index,
        "stage": rejected.reject.stage.value,
        "reason": rejected.reject.reason,
        "detail": rejected.reject.detail,
    }
