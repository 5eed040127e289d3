"""Publishing a part: one create-if-absent of one finished file, and nothing else.

A publication has three outcomes. *Done*: the object is ours. *Lost*: another attempt was first; its part is as good as
ours if it carries the same fingerprint. *Unknown*: no acknowledgement arrived; then we look at what is there.
"""

import uuid
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.errors import AlreadyExists, FingerprintMismatch, NotFound, StorageError, StoreRefused
from pipeline.storage import Storage
from pipeline.tokens.reader import read_footer
from pipeline.tokens.schema import PartFooter
from pipeline.urls import canonical, join

ADVICE = (
    "use a store with conditional writes (S3, GCS, Azure, a local disk), or set output.allow_overwrite_commit and run "
    "one job at a time"
)


class Outcome(StrEnum):
    """How a commit ended; in both cases the shard is done."""

    DONE = "done"  # this attempt's part was acknowledged
    LOST = "lost"  # the name was taken by an equal part: another attempt's, or our own whose acknowledgement was lost


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
    try:
        publish(storage, part, url, overwrite=overwrite)
    except AlreadyExists:
        try:
            return _settle(storage, url, footer)
        except NotFound as error:
            raise StorageError(f"{url}: taken a moment ago, gone now") from error
    except StorageError as unknown:
        try:
            return _settle(storage, url, footer)
        except NotFound:
            raise unknown from None  # nothing was published
    return Outcome.DONE


def publish(storage: Storage, source: Path, url: str, *, overwrite: bool = False) -> None:
    """Publish the finished file `source` as `url` if the name is free.

    Args:
        overwrite: look first, then put: for a store without create-if-absent, and not safe against a second writer.

    Raises:
        AlreadyExists: the name is taken.
        StorageError: the outcome is unknown.
    """
    if not overwrite:
        storage.create(url, source)
    elif storage.exists(url):
        raise AlreadyExists(f"{url}: exists already")
    else:
        storage.put(url, source)


def probe(storage: Storage, output: str) -> None:
    """Find out whether the store keeps create-if-absent, by trying it under `output` with a throw-away name.

    Raises:
        StoreRefused: it offers none, or a second create of one name succeeded: commits could overwrite each other.
    """
    url = join(output, f".probe-{uuid.uuid4().hex}")
    with TemporaryDirectory() as folder:
        file = Path(folder, "probe")
        file.write_bytes(b"tokenmill looks whether a second create of this name fails")
        try:
            storage.create(url, file)
        except StoreRefused as error:
            raise StoreRefused(f"{error}; {ADVICE}") from error
        try:
            storage.create(url, file)
        except AlreadyExists:
            return
        finally:
            storage.delete(url)
    raise StoreRefused(
        f"{canonical(output)}: the store replaced an object that a conditional create must not touch, so two attempts "
        f"at a shard could overwrite each other; {ADVICE}"
    )


def _settle(storage: Storage, url: str, footer: PartFooter) -> Outcome:
    """The name may be taken: by whom?

    Raises:
        NotFound: by nobody.
    """
    winner = read_footer(storage, url)
    if (winner.fingerprint, winner.shard.get("id")) != (footer.fingerprint, footer.shard["id"]):
        raise FingerprintMismatch(
            f"{url} holds tokens of another run (fingerprint {winner.fingerprint[:12]}, this run "
            f"{footer.fingerprint[:12]}); choose another output"
        )
    return Outcome.LOST
