"""The frozen manifest of an OUTPUT, and how drivers extend it at the same moment without losing each other's shards.

Stores offer no read-modify-write. So a driver that adds shards first announces them, in an object of its own beside
the manifest; only then does it read, write the sum of the manifest and all announcements, and look again: as long as
there are announcements that it has not added, it adds them. It takes its own back only if it is alone.

Nothing is lost, because at any moment a shard is in the manifest for good or in an announcement. Whoever writes an old
sum over a newer manifest had announced itself before it read, and will look again: it cannot have been overlooked by a
driver that found itself alone, and it cannot overlook the announcement of one that did not. What is left over (after
two drivers met, or one was killed) belongs to the manifest and costs a few kilobytes.
"""

import re
import uuid
from collections.abc import Container, Iterable
from contextlib import suppress

from pipeline.errors import NotFound
from pipeline.shards.manifest import Shard, from_parquet, to_parquet
from pipeline.storage import Storage
from pipeline.urls import join

NAME = "manifest.parquet"
ANNOUNCED = ".manifest"  # suffix
_ANNOUNCEMENT = re.compile(r".*/(\d{6})-[0-9a-f]{32}\.manifest")  # numbered: the last word on a shard counts


def read_manifest(storage: Storage, output: str) -> list[Shard]:
    """The frozen shards of OUTPUT sorted by URL; none if nothing has been frozen yet.

    Raises:
        UsageError: it is damaged.
    """
    return _sorted(_sum(storage, output, _announcements(storage, output)))


def extend_manifest(
    storage: Storage, output: str, shards: Iterable[Shard], refrozen: Container[str] = ()
) -> list[Shard]:
    """Add shards to the manifest of OUTPUT; returns all of it.

    Args:
        shards: as they are now; one that is frozen already keeps the size and ETag it had.
        refrozen: ids of shards to which that does not apply.

    Raises:
        UsageError: the manifest is damaged.
    """
    announced = _announcements(storage, output)
    there = _sum(storage, output, announced)
    news = [s for s in shards if s.id not in there or (s.id in refrozen and s != there[s.id])]
    if not news and (not announced or there == _written(storage, output)):
        return _sorted(there)
    mine, keep = _announce(storage, output, news), False
    try:
        while True:
            announced = _announcements(storage, output)
            merged = _sorted(_sum(storage, output, announced))
            storage.write(join(output, NAME), to_parquet(merged))
            if _announcements(storage, output) == announced:
                keep = bool(news) and announced != [mine]
                return merged
    finally:
        if not keep:  # nor after a failure: no work on these shards begins
            storage.delete(mine)


def _announce(storage: Storage, output: str, shards: list[Shard]) -> str:
    there = _announcements(storage, output)
    number = 1 + (int(_ANNOUNCEMENT.sub(r"\1", there[-1])) if there else 0)
    url = join(output, f"{number:06d}-{uuid.uuid4().hex}{ANNOUNCED}")
    storage.write(url, to_parquet(shards))
    return url


def _announcements(storage: Storage, output: str) -> list[str]:
    """The URLs of all announcements, in their order."""
    return [blob.url for blob in storage.list_folder(output, ANNOUNCED) if _ANNOUNCEMENT.fullmatch(blob.url)]


def _sum(storage: Storage, output: str, announcements: list[str]) -> dict[str, Shard]:
    """The manifest with what is announced, by id."""
    news: dict[str, Shard] = {}
    for url in announcements:
        with suppress(NotFound):  # it was taken back: the manifest, read below, has it
            news |= _by_id(from_parquet(storage.read(url)))
    return _written(storage, output) | news


def _written(storage: Storage, output: str) -> dict[str, Shard]:
    """The manifest as it is written, by id."""
    try:
        return _by_id(from_parquet(storage.read(join(output, NAME))))
    except NotFound:
        return {}


def _by_id(shards: Iterable[Shard]) -> dict[str, Shard]:
    return {shard.id: shard for shard in shards}


def _sorted(shards: dict[str, Shard]) -> list[Shard]:
    return sorted(shards.values(), key=lambda shard: shard.url)
