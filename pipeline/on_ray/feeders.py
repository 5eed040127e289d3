"""The decode actors of a run: who of them is free, and who reads for which attempt.

An attempt is fed by a decode actor if one is free when it begins, else its own actor decodes. Ray starts one again that
died; the attempt which it fed fails without blame.
"""

from typing import Any

import ray
from ray.exceptions import RayError

from pipeline.config import JobConfig
from pipeline.on_ray.cluster import RemoteDecoder
from pipeline.schedule import Assignment


class Feeders:
    """The decode actors, each of which feeds one attempt at a time."""

    def __init__(self, config: JobConfig) -> None:
        self._config = config
        self._starting: dict[Any, Any] = {}  # what `ready` will answer -> handle
        self._free: list[Any] = []
        self._taken: dict[Assignment, Any] = {}

    def recruit(self) -> None:
        """Start all of them; those that find no place yet wait for one."""
        wanted = self._config.cluster
        missing = wanted.decode_actors - len(self._starting) - len(self._free) - len(self._taken)
        remote = ray.remote(RemoteDecoder).options(num_cpus=wanted.cpus_per_decode_actor, num_gpus=0, max_restarts=-1)
        for _ in range(missing):
            self._begin(remote.remote(self._config, wanted.cpus_per_decode_actor))

    def take(self, assignment: Assignment) -> Any:
        """A free one for an attempt, None if there is none."""
        if self._starting:
            ready, _ = ray.wait(list(self._starting), num_returns=len(self._starting), timeout=0)
            for ref in ready:
                self._welcome(self._starting.pop(ref), ref)
        if not self._free:
            return None
        self._taken[assignment] = self._free.pop()
        return self._taken[assignment]

    def give_back(self, assignment: Assignment | None, *, emptied: bool) -> None:
        """The attempt has ended; who fed it is free as soon as it answers.

        Args:
            assignment: of the attempt.
            emptied: it took all of the shard; else its feeder may wait for it for ever, and starts anew.
        """
        if assignment in self._taken:
            handle = self._taken.pop(assignment)
            if not emptied:
                ray.kill(handle, no_restart=False)
            self._begin(handle)

    def abandon(self, actor: str) -> None:
        """An actor is gone, with all its attempts."""
        for assignment in [one for one in self._taken if one.actor == actor]:
            self.give_back(assignment, emptied=False)

    def dismiss_all(self) -> None:
        """End all of them."""
        for handle in (*self._starting.values(), *self._free, *self._taken.values()):
            ray.kill(handle)
        self._starting, self._free, self._taken = {}, [], {}

    def _welcome(self, handle: Any, ref: Any) -> None:
        try:
            ray.get(ref)
        except RayError:  # it died, and is being started again
            self._begin(handle)
        else:
            self._free.append(handle)

    def _begin(self, handle: Any) -> None:
        self._starting[handle.ready.remote()] = handle
