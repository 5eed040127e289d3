"""How fast a run was over time: a log of its counters, thinned out as it grows, for the report."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

POINT_SECONDS = 5.0  # between the first points; doubles whenever there are too many
MOST_POINTS = 400


@dataclass(frozen=True, slots=True)
class Point:
    """The counters at one moment: sums since the start, over all actors.

    Attributes:
        seconds: since the first shard was assigned.
        images: rows made.
        actors: at work now.
        busy: seconds of work by stage, over its lanes.
    """

    seconds: float
    images: int
    actors: int
    busy: Mapping[str, float]


@dataclass(slots=True)
class Timeline:
    """The points of one run, oldest first.

    Attributes:
        lanes: threads or devices of one actor that work at a stage.
        supply: `here` (an actor decodes for itself) or `remote` (a decode actor does) -> seconds in which shards
            `waited` for pixels, of those that they `lasted`.
        forecast: `rows` and `seconds` that the run was expected to take when it began.
        price_per_actor_hour: what an actor costs, in the user's currency; None if that is not known.
    """

    lanes: Mapping[str, int]
    price_per_actor_hour: float | None = None
    points: list[Point] = field(default_factory=list)
    forecast: Mapping[str, float] | None = None
    supply: dict[str, dict[str, float]] = field(default_factory=dict)
    spacing: float = POINT_SECONDS

    def add(self, point: Point) -> None:
        """Keep a point if it is time for one."""
        if point.seconds < self._last + self.spacing:
            return
        self.points.append(point)
        if len(self.points) > MOST_POINTS:
            self.spacing *= 2
            self.points = self.points[1::2]

    def supplied(self, remote: bool, waited: float, lasted: float) -> None:
        """A shard is done, which waited for pixels so long (seconds)."""
        sums = self.supply.setdefault("remote" if remote else "here", {"waited": 0.0, "lasted": 0.0})
        sums["waited"] += waited
        sums["lasted"] += lasted

    def end(self, point: Point) -> None:
        """Keep the last point, so that the end of a run is in its log, however short it was.

        Points from after the end go.
        """
        self.points = [earlier for earlier in self.points if earlier.seconds < point.seconds]
        if point.seconds > 0:
            self.points.append(point)

    @property
    def _last(self) -> float:
        return self.points[-1].seconds if self.points else 0.0

    def to_json(self) -> bytes:
        """As `pipeline.qa.report.throughput` reads it."""
        document = {"schema": 1, "lanes": self.lanes, "points": [asdict(point) for point in self.points]}
        document |= {
            "price_per_actor_hour": self.price_per_actor_hour,
            "forecast": self.forecast,
            "supply": self.supply,
        }
        return json.dumps(document).encode()
