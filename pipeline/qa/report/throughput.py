"""How fast a run was, minute by minute, from the log of its counters: OUTPUT/report/events.json.

A run may leave it, and is whole without it: a few hundred points, thinned out as the run goes on. Every counter of a
point is a sum since the start, over all actors; `lanes` are those of one actor:

    {"schema": 1,
     "lanes": {"fetch": 2, "decode": 4, "encode": 1, "write": 2, "publish": 2},
     "points": [{"seconds": 30.0, "images": 4100, "actors": 1, "busy": {"fetch": 3.0, "decode": 96.1, "encode": 28.8}}],
     "price_per_actor_hour": null,
     "forecast": {"rows": 4000, "seconds": 29.0},
     "supply": {"here": {"waited": 20.0, "lasted": 25.0}, "remote": {"waited": 3.0, "lasted": 24.0}}}
"""

from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pipeline.errors import NotFound
from pipeline.meter import Part
from pipeline.storage import Storage
from pipeline.urls import join

Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Floats = npt.NDArray[np.float64]


class Point(BaseModel):
    """The counters of a run at one moment."""

    model_config = ConfigDict(frozen=True)

    seconds: Number = Field(description="since the first shard was assigned (s)")
    images: int = Field(ge=0, description="rows made since then")
    actors: int = Field(ge=0, description="actors at work now")
    busy: dict[str, Number] = Field(description="seconds of work by stage since then, summed over its lanes (s)")


class Expected(BaseModel):
    """What the run was expected to take when it began."""

    model_config = ConfigDict(frozen=True)

    rows: int = Field(ge=0, description="views tokenized")
    seconds: Number = Field(description="wall time without start-up (s)")


class Waits(BaseModel):
    """How long shards waited for pixels."""

    model_config = ConfigDict(frozen=True)

    waited: Number = Field(description="for the next image (s)")
    lasted: Number = Field(description="from the first byte to the last row (s)")


class Throughput(BaseModel):
    """A run's counters over time."""

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = Field(alias="schema")
    lanes: dict[str, int] = Field(description="threads or devices of one actor that work at a stage")
    points: list[Point] = Field(max_length=10_000, description="later ones last")
    price_per_actor_hour: Number | None = Field(
        None, description="what an actor costs (user's currency/h), null if not known"
    )

    forecast: Expected | None = Field(None, description="null if nothing was measured at the start")

    supply: dict[Literal["here", "remote"], Waits] = Field(
        default_factory=dict, description="shards decoded by their own actors, and by decode actors"
    )

    @field_validator("points")
    @classmethod
    def _forward(cls, points: list[Point]) -> list[Point]:
        times = [0.0, *(point.seconds for point in points)]
        if any(before >= after for before, after in pairwise(times)):
            raise ValueError("points must be later and later, after 0 s")
        return points

    def intervals(self) -> tuple[Floats, Floats, dict[str, Floats]]:
        """Ends of the intervals (s), images/s in them, and by stage the share of its lanes that was busy; each [n]."""
        points = self.points
        seconds = np.array([0.0, *(point.seconds for point in points)])
        images = np.array([0.0, *(point.images for point in points)])
        length = np.maximum(np.diff(seconds), 1e-9)
        actors = np.array([max(1, point.actors) for point in points], float)
        shares = {}
        for stage in Part:
            busy = np.array([0.0, *(point.busy.get(stage, 0.0) for point in points)])
            lanes = actors * max(1, self.lanes.get(stage, 1))
            shares[stage.value] = np.clip(np.diff(busy) / (length * lanes), 0, 1)
        return seconds[1:], np.diff(images) / length, shares

    def actor_hours(self) -> float:
        """Actors times hours."""
        points = self.points
        seconds = np.diff([0.0, *(point.seconds for point in points)])
        return float(seconds @ np.array([point.actors for point in points], float)) / 3600


def read_throughput(storage: Storage, output: str) -> Throughput | None:
    """The log of a run's counters, None if there is none, or none that can be read: nothing depends on it."""
    try:
        return Throughput.model_validate_json(storage.read(join(output, "report", "events.json")))
    except (NotFound, ValidationError):
        return None
