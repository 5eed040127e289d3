"""What a run finds in OUTPUT, and what is left to do."""

from dataclasses import dataclass

from pipeline.output import Output
from pipeline.shards.manifest import Shard


@dataclass(frozen=True, slots=True)
class Todo:
    """The work of one run.

    Attributes:
        given: the shards of the command line, as they are now.
        shards: all shards, frozen before or given now, by id.
        pending: those without a part that is to stay.
        given_up: shard id -> why, of those that an earlier run quarantined and nobody asked to retry.
        refrozen: shards without a part whose size and ETag may be taken anew: they were missing or bad before.
        withdrawn: shards whose parts are to be made again.
    """

    given: list[Shard]
    shards: dict[str, Shard]
    pending: list[Shard]
    given_up: dict[str, dict[str, str]]
    refrozen: set[str]
    withdrawn: list[str]

    @property
    def committed(self) -> list[str]:
        """The ids of the shards whose parts are there and stay."""
        return sorted(self.shards.keys() - self.given_up.keys() - {shard.id for shard in self.pending})


def what_is_left(output: Output, given: list[Shard], *, retry_quarantined: bool, retry_rejects: bool) -> Todo:
    """Compare the manifest and the shards given now with the parts that are there.

    Args:
        output: the store; it is only read.
        given: the shards of the command line.
        retry_quarantined: try again what an earlier run gave up.
        retry_rejects: make the parts again that have rejects.
    """
    frozen = {shard.id: shard for shard in output.manifest()}
    shards = frozen | {shard.id: shard for shard in given}
    parts = output.parts()
    withdrawn = output.with_rejects(parts) if retry_rejects else []
    quarantined = {shard: why for shard, why in output.given_up().items() if shard in shards and shard not in parts}
    found = {shard.id for shard in frozen.values() if shard.size is None and shards[shard.id].size is not None}
    given_up = {} if retry_quarantined else {shard: why for shard, why in quarantined.items() if shard not in found}
    done = (parts.keys() - set(withdrawn)) | given_up.keys()
    return Todo(
        given=given,
        shards=shards,
        pending=[shard for shard in shards.values() if shard.id not in done],
        given_up=given_up,
        refrozen=found | (quarantined.keys() - given_up.keys()),
        withdrawn=withdrawn,
    )
