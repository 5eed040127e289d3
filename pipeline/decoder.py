"""What one decode actor does: the first half of the heart for an actor whose own cores are too few. A plain class.

It has no model and no device. Shards come one at a time; what it yields goes through Ray's object store, which holds
this actor back when its consumer is slow.
"""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from pipeline.config import JobConfig
from pipeline.errors import UsageError
from pipeline.feed import CORE_BUDGET, Attempt, Fed, Intake, chunks
from pipeline.images import configure_pillow, resampler
from pipeline.isolation import prepare_sample
from pipeline.meter import Meter
from pipeline.select import Selection
from pipeline.shards.manifest import Shard
from pipeline.storage import Storage
from pipeline.worker import SWITCH_SECONDS, failure_of


class Decoder:
    """Fetches and decodes shards for others.

    Args:
        job: the configuration.
        cpus: threads for decoding.
    """

    def __init__(self, job: JobConfig, cpus: int) -> None:
        sys.setswitchinterval(SWITCH_SECONDS)
        configure_pillow()
        self._job, self._cpus = job, cpus
        self._storage, self._decoders = Storage(job.storage), ThreadPoolExecutor(cpus, thread_name_prefix="decode")
        self._selection = Selection.load(job.select, job.columns.meta, self._storage)

    def feed(self, shard: Shard, resampled_by: str) -> Iterator[Fed]:
        """The shard's views in chunks, then its accounts; or why it cannot be read.

        Args:
            shard: to read.
            resampled_by: what resamples images where the views are wanted; here it must be the same.
        """
        job, attempt = self._job, Attempt()
        intake = Intake(
            storage=self._storage,
            decoders=self._decoders,
            meter=Meter(),
            image=job.image,
            columns=job.columns,
            decode=partial(prepare_sample, image=job.image, seed=job.seed, select=job.select),
            tar=job.tar,
            decode_budget=CORE_BUDGET * self._cpus,
            selection=self._selection,
        )
        try:
            _check_resampler(resampler(job.image.decode), resampled_by)
            yield from chunks(shard, intake, attempt)
        except Exception as error:  # noqa: BLE001 - whose fault it is, the driver decides from the value
            yield failure_of(shard, error)


def _check_resampler(here: str, there: str) -> None:
    if here != there:
        raise UsageError(
            f"a decode actor resamples images in another way ({here}) than the actors with the model ({there}); put "
            "the same libraries on every node, or set cluster.decode_actors=0"
        )
