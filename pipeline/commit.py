"""Publishing a part: one create-if-absent of one finished file, and nothing else.

A publication has three outcomes. *Done*: the object is ours. *Lost*: another attempt was first; its part is as good as
ours if it carries the same fingerprint. *Unknown*: no acknowledgement arrived; then we look at what is there.
"""

import uuid
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

from pipeline.errors import AlreadyExists, FingerprintMismatch, NotFound, StorageError, StoreRefused
from pipeline.scratch import draft_folder
from pipeline.storage import Forbidden, Storage
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


def commit(
    storage: Storage,
    part: Path,
    url: str,
    footer: PartFooter,
    *,
    overwrite: bool = False,
    on_doubt: Callable[[], object] = lambda: None,
) -> Outcome:
    """Publish the finished file `part` as `url`, once.

    Args:
        part: the finished, checked file on local disk.
        footer: what the part says about itself.
        overwrite: the store has no create-if-absent and the user accepted that: look first, then put.
        on_doubt: called when the first request has used up its time, before the second one looks what is there.

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
        on_doubt()
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
        StoreRefused: the file needs a multipart upload, and the store keeps no condition on one.
        StorageError: the outcome is unknown.
    """
    if overwrite:
        if storage.exists(url):
            raise AlreadyExists(f"{url}: exists already")
        storage.put(url, source)
        return
    if storage.in_parts(url, source.stat().st_size):
        probe(storage, url.rpartition("/")[0], in_parts=True)  # nothing beside an upload of that size
    storage.create(url, source)


def probe(storage: Storage, output: str, *, in_parts: bool = False) -> None:
    """Find out whether the store keeps create-if-absent, by trying it under `output` with a throw-away name.

    Args:
        in_parts: try it with the multipart upload that large files take. Some stores keep the condition on a PUT only.

    Raises:
        StoreRefused: it offers none, or a second create of one name succeeded: commits could overwrite each other.
    """
    url = join(output, f".probe-{uuid.uuid4().hex}")
    create = storage.create_in_parts if in_parts else storage.create
    with draft_folder() as folder:
        file = Path(folder, "probe")
        file.write_bytes(b"tokenmill looks whether a second create of this name fails")
        try:
            create(url, file)
            create(url, file)
            kept = False
        except AlreadyExists:
            kept = True  # by the first create, too, if its acknowledgement was lost: nobody else knows this name
        except StoreRefused as error:
            raise StoreRefused(f"{error}; {ADVICE}") from error
    with suppress(Forbidden):  # who may create and not delete leaves this little object behind
        storage.delete(url)
    if kept:
        return
    how = "completes a multipart upload over" if in_parts else "replaced"
    raise StoreRefused(
        f"{canonical(output)}: the store {how} an object that a conditional create must not touch, so two attempts "
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
