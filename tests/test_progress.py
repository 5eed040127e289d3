"""What machines are told of a run: JSON lines and metrics."""

import json
from datetime import datetime
from typing import ClassVar

import pytest

from pipeline.meter import Meter, Part, Reading
from pipeline.on_ray.metrics import COUNTERS, GAUGES, Metrics, figures
from pipeline.progress import JsonLines, Plain, Silent, Snapshot, run_name

SNAPSHOT = Snapshot(
    shards_total=9,
    shards_done=3,
    shards_running=2,
    quarantined=1,
    images=70,
    rejects=5,
    rate=2.0,
    eta=None,
    bound=("encode", 0.9),
    actors=2,
    shards_waiting=3,
    total=Reading({"encode": 4.5}, 70, 75, 5, 1000, 17920, {"corrupt": 3, "too_large": 2}),
    lanes={"encode": 2},
    queues={"encode": 16},
    idle=0.5,
    psnr=21.0,
)


def test_json_lines_carry_run_shard_and_attempt() -> None:
    lines: list[str] = []
    log = JsonLines("out-1", lines.append)
    log.note("attempt 2 failed", shard="a-0", attempt=2)
    log.event("committed", shard="a-0", attempt=3, rows=7)
    log.show(SNAPSHOT)
    log.show(SNAPSHOT)
    failed, committed, progress = map(json.loads, lines)
    assert {record["run"] for record in (failed, committed, progress)} == {"out-1"}
    assert datetime.fromisoformat(failed.pop("time")).utcoffset() is not None
    assert failed == {"run": "out-1", "event": "note", "message": "attempt 2 failed", "shard": "a-0", "attempt": 2}
    assert (committed["event"], committed["shard"], committed["attempt"], committed["rows"]) == (
        "committed",
        "a-0",
        3,
        7,
    )
    assert (progress["event"], progress["shards_done"], progress["bound"]) == ("progress", 3, "encode")


def test_people_are_not_told_of_every_shard() -> None:
    lines: list[str] = []
    Plain(lines.append).event("begun", shard="a-0", attempt=1)
    assert lines == []


@pytest.mark.parametrize(
    ("output", "stem"),
    [("s3://b/tokens", "tokens"), ("file:///a/my run/", "my-run"), ("s3://b/" + "x" * 99, "x" * 40)],
)
def test_run_is_named_after_its_output(output: str, stem: str) -> None:
    assert run_name(output).rpartition("-")[0] == stem
    assert run_name(output) != run_name(f"{output}2")


def test_snapshot_as_metrics() -> None:
    found = {(name, label): value for name, label, value in figures(SNAPSHOT)}
    assert {name for name, _ in found} == (COUNTERS.keys() | GAUGES.keys()) - {"agreement"}, "not measured"
    assert (found["rejects", "corrupt"], found["rejected", ""]) == (3, 5)
    assert found["shards", "waiting"] == 3
    assert found["stage_seconds", "encode"] == 4.5
    assert found["tokens", ""] == 17920
    assert all((label != "") == bool((COUNTERS | GAUGES)[name][1]) for name, label in found)


class Told:
    """Stands in for Ray's counters and gauges: keeps what it is told."""

    values: ClassVar[dict[str, list[float]]] = {}

    def __init__(self, name: str, **_: object) -> None:
        self._told = self.values.setdefault(name.removeprefix("tokenmill_"), [])

    def inc(self, value: float, tags: dict[str, str]) -> None:
        assert value > 0, "Ray's counters take nothing else"
        assert tags["run"] == "out-1"
        self._told.append(value)

    def set(self, value: float, tags: dict[str, str]) -> None:
        """A gauge's."""


def test_counters_begin_before_anything_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Told, "values", {})
    monkeypatch.setattr("pipeline.on_ray.metrics.Counter", Told)
    monkeypatch.setattr("pipeline.on_ray.metrics.Gauge", Told)
    metrics = Metrics(Silent(), "out-1")
    plain = {name for name, (_, tags) in COUNTERS.items() if not tags}
    assert {name for name, told in Told.values.items() if told} == plain, "a rate sees no rise without them"
    metrics.show(SNAPSHOT)
    metrics.show(SNAPSHOT)
    assert sum(Told.values["rejected"]) == 5
    assert sum(Told.values["tokens"]) == 17920


def test_meter_counts_rejects_by_reason() -> None:
    meter = Meter()
    meter.count(samples=3, tokens=64)
    meter.spend(Part.DECODE, 0.5)
    for reason in ("corrupt", "corrupt", "too_large"):
        meter.reject(reason)
    assert meter.read() == Reading({"decode": 0.5}, 0, 3, 3, 0, 64, {"corrupt": 2, "too_large": 1})
    meter.reset()
    assert meter.read().reasons == {}
