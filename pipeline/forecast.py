"""What a run will take, from what was measured before it: pure arithmetic. `plan` shows it, the report judges it."""

import math
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import UsageError
from pipeline.messages import Calibration
from pipeline.storage.reading import BLOCK_BYTES

WRITES = 2  # requests that a shard ends with: its part, and the evidence of QA


class PriceTable(BaseModel):
    """What things cost, in any one currency: the file of `plan --prices`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    currency: str = Field("", description="name of the currency, for display")
    actor_hour: dict[str, float] = Field(
        default_factory=dict, description="an actor with its GPU and cores, by a part of the device's name (per hour)"
    )
    thousand_requests: float = Field(0.0, ge=0, description="requests to the store (per 1,000)")
    gb_read: float = Field(0.0, ge=0, description="input read from the store (per 10^9 bytes)")
    gb_month: float = Field(0.0, ge=0, description="output kept in the store for a month (per 10^9 bytes)")

    def of_actor(self, device: str) -> float | None:
        """The price of an actor-hour on a device: that of the longest name which is a part of the device's."""
        fitting = [name for name in self.actor_hour if name.lower() in device.lower()]
        return self.actor_hour[max(fitting, key=len)] if fitting else None


def price_table(file: Path) -> PriceTable:
    """Read the user's prices.

    Raises:
        UsageError: the file cannot be read, or is no such table.
    """
    try:
        return PriceTable.model_validate(yaml.safe_load(file.read_bytes()) or {})
    except (OSError, yaml.YAMLError, ValueError) as error:  # among them ValidationError
        raise UsageError(f"{file}: must be a table of prices in YAML, as `plan --help` shows it: {error}") from error


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a run is expected to make of its shards.

    Attributes:
        rows: views tokenized.
        seconds: wall time without start-up.
    """

    rows: int
    seconds: float


def forecast(measured: Calibration, views: int, input_bytes: int, actors: int) -> Forecast | None:
    """The forecast of a run from its own calibration; None if that saw no whole sample.

    Args:
        measured: at the start of the run.
        views: of a sample.
        input_bytes: of the shards to do.
        actors: that will share them.
    """
    if not measured.bytes_per_sample:
        return None
    rows = round(input_bytes / measured.bytes_per_sample * views)
    return Forecast(rows, rows / (measured.together * actors))


def requests(sizes: list[int]) -> int:
    """Requests to the store that reading and committing shards of these sizes (bytes) takes, retries not counted."""
    return sum(math.ceil(size / BLOCK_BYTES) + WRITES for size in sizes)


def cost(prices: PriceTable, device: str, actor_hours: float, input_bytes: int, asked: int) -> float | None:
    """What a run costs; None if the table has no price for the device.

    Args:
        prices: of the user.
        device: name of the device.
        actor_hours: actors times hours.
        input_bytes: read.
        asked: requests to the store.
    """
    hourly = prices.of_actor(device)
    if hourly is None:
        return None
    return actor_hours * hourly + asked / 1e3 * prices.thousand_requests + input_bytes / 1e9 * prices.gb_read
