"""Publishing a part: one create-if-absent of one finished file, and nothing else.

A publication has three outcomes. *Done*: the object is ours. *Lost*: another attempt was first; its part is as good as
ours if it carries the same fingerprint. *Unknown*: the acknowledgement did not arrive; then we look at what is there.
"""

import uuid
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory

from tenacity import RetryError, Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from pipeline.errors import AlreadyExists, FingerprintMismatch, NotFound, StorageError, StoreRefused
from pipeline.storage import Storage
from pipeline.tokens.reader import read_footer
from pipeline.tokens.schema import PartFooter
from pipeline.urls import canonical, join

ATTEMPTS = 6  # conditional puts per commit; a put whose outcome is unknown is looked at before the next


class Outcome(StrEnum):
    """How a commit ended; in both cases the shard is done."""

    DONE = "done"
    LOST = "lost"


def commit(storage: Storage, part: Path, url: str, footer: PartFooter, *, overwrite: bool = False) -> Outcome:
    """Publish the finished file `part` as `url`, once.

    Args:
        part: the finished, checked file on local disk.
        footer: what the part says about itself.
        overwrite: the store has no create-if-absent and the user accepted that: look first, then put.

    Raises:
        FingerprintMismatch: the name is taken by tokens of another configuration.
        NotAPart: the name is taken by something that is no part.
        StorageError: the store stayed unavailable; whether the part is there is unknown.
    """

    def attempt() -> Outcome:
        try:
            if not overwrite:
                storage.create(url, part)
            elif storage.exists(url):
                return _settle(storage, url, footer)
            else:
                storage.put(url, part)
        except AlreadyExists:
            return _settle(storage, url, footer)
        return Outcome.DONE

    # A StorageError leaves the outcome unknown; the next conditional put finds out: it meets our own object, or none.
    policy = Retrying(
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_random_exponential(multiplier=0.2, max=10),
        retry=retry_if_exception_type(StorageError),
    )
    try:
        return policy(attempt)
    except RetryError as error:
        raise StorageError(f"{url}: not published after {ATTEMPTS} tries: {error.last_attempt.exception()}") from error


def _settle(storage: Storage, url: str, footer: PartFooter) -> Outcome:
    """The name was taken: by whom?"""
    try:
        winner = read_footer(storage, url)
    except NotFound as error:
        raise StorageError(f"{url}: taken a moment ago, gone now") from error
    if winner.fingerprint != footer.fingerprint or winner.shard["id"] != footer.shard["id"]:
        raise FingerprintMismatch(
            f"{url} holds tokens of another run (fingerprint {winner.fingerprint[:12]}, this run "
            f"{footer.fingerprint[:12]}); choose another output"
        )
    return Outcome.LOST


def probe(storage: Storage, output: str) -> None:
    """Find out whether the store keeps create-if-absent, by trying it under `output` with a throw-away name.

    Raises:
        StoreRefused: a second create of one name succeeded, so commits there could overwrite each other.
    """
    url = join(output, f".probe-{uuid.uuid4().hex}")
    with TemporaryDirectory() as folder:
        first, second = Path(folder, "first"), Path(folder, "second")
        first.write_bytes(b"first")
        second.write_bytes(b"second")
        try:
            storage.create(url, first)
            try:
                storage.create(url, second)
            except AlreadyExists:
                return
        finally:
            storage.delete(url)
    raise StoreRefused(
        f"{canonical(output)}: the store replaced an object that a conditional create must not touch, so two attempts "
        "at a shard could overwrite each other; use a store with conditional writes (S3, GCS, Azure, a local disk), "
        "or set output.allow_overwrite_commit and run one job at a time"
    )
