"""Faults of a run as values: a test plans them, hands their environment to the run, and counts what fired."""

import json
import os
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
POINTS = (
    "opened",
    "first_batch",
    "before_write",
    "written",
    "before_publish",
    "publishing",
    "published",
    "before_report",
)
FINALISATION = tuple(
    f"{when} {name}"
    for name in ("claim", "manifest.parquet", "rejects.parquet", "summary.json", "README.md", "_SUCCESS")
    for when in ("before", "after")
)
ALWAYS = 10_000  # times


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault.

    Attributes:
        point: where, as `sitecustomize` names it.
        action: kill, segv, hang, freeze, devour, full or sleep.
        shard: pattern of the shard ids it is meant for (`00003-*`); outside attempts the id is empty.
        marker: only samples whose image holds these characters.
        times: how often it may fire, all processes together.
        amount: bytes for `devour`, seconds for `sleep`.
    """

    point: str
    action: str
    shard: str = "*"
    marker: str = ""
    times: int = 1
    amount: float = 0.0


class Faults:
    """The plan of a run, in `folder`. A plan counts for the processes that start after it was made."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._plans = folder, 0
        self.plan()

    @property
    def environment(self) -> dict[str, str]:
        """What every process of the run must find in its environment."""
        paths = [str(FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {"FAULT_PLAN": str(self._folder / "plan.json"), "PYTHONPATH": os.pathsep.join(paths)}

    def plan(self, *faults: Fault, stretch: float = 0.0) -> None:
        """Forget the last plan, and plan this.

        Args:
            faults: what is to happen.
            stretch: a pause at every sample, so that faults from outside hit the middle of the work (seconds).
        """
        self._plans += 1
        self._fired().mkdir(parents=True)
        named = [
            {"name": f"{number} {fault.action} at {fault.point}", **asdict(fault)}
            for number, fault in enumerate(faults)
        ]
        document = {"fired": str(self._fired()), "stretch": stretch, "faults": named}
        draft = self._folder / "plan.draft"
        draft.write_text(json.dumps(document))
        draft.replace(self._folder / "plan.json")

    def fired(self) -> Counter[str]:
        """How often each fault of this plan fired: `kill at opened` -> 1."""
        names = (path.name.rpartition(".")[0].partition(" ")[2] for path in self._fired().iterdir())
        return Counter(names)

    def shards(self) -> set[str]:
        """The ids of the shards at whose attempts a fault of this plan fired."""
        return {path.read_text().split(" ")[0] for path in self._fired().iterdir()}

    def processes(self, name: str) -> list[int]:
        """The ids of the processes in which a fault of this plan fired, as often as it did."""
        paths = (path for path in self._fired().iterdir() if path.name.rpartition(".")[0].partition(" ")[2] == name)
        return [int(path.read_text().split(" ")[1]) for path in paths]

    def _fired(self) -> Path:
        return self._folder / f"fired-{self._plans}"
