"""The report's numbers and words, from evidence made by hand."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import UsageError
from pipeline.meter import Part
from pipeline.qa.report import Report, make_report, publish_report
from pipeline.qa.report.plots import busy_over_time, rate_over_time
from pipeline.qa.report.run import MAX_SHARDS, choose
from pipeline.storage import Storage
from pipeline.timeline import Point, Timeline
from tests.support.evidence_files import RunCase, ShardCase, healthy, view

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
FINDING = {"gate": "duplicates", "where": "s3://corpus/00002.tar", "value": 0.5, "limit": 0.2, "message": "copies"}


def report(output: Path, other: Path | None = None) -> Report:
    return make_report(Storage(), str(output), str(other) if other else None, now=NOW)


def numbers(output: Path) -> dict[str, Any]:
    return report(output).document["runs"][0]


# --- how a run stands ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "level", "code", "headline"),
    [
        ({}, "good", 0, "Complete"),
        ({"summary": {"gates": [FINDING]}}, "bad", 3, "Failed: duplicates"),
        ({"summary": None, "committed": 3}, "open", None, "Not finished"),
        ({"summary": None}, "open", None, "Not finished"),
        ({"summary": {"exit": 4}, "committed": 3}, "open", 4, "Stopped"),
        (
            {"summary": {"shards": {"total": 5, "committed": 4, "quarantined": 1}}, "committed": 4},
            "bad",
            3,
            "1 shards quarantined",
        ),
    ],
)
def test_verdict(changes: dict[str, Any], level: str, code: int | None, headline: str, tmp_path: Path) -> None:
    found = numbers(healthy(**changes).write(tmp_path / "run"))["verdict"]
    assert (found["level"], found["exit_code"], found["headline"]) == (level, code, headline)


def test_run_at_work_is_counted_from_its_parts(tmp_path: Path) -> None:
    case = healthy(summary=None, committed=3)
    case.shards[1].rejects = {"truncated": 2, "not_image": 1}
    found = numbers(case.write(tmp_path / "run"))
    assert found["accounts"] == {
        "samples": 63,
        "tokenized": 60,
        "rows": 60,
        "rejects": 3,
        "filtered": 0,
        "bytes": found["accounts"]["bytes"],
    }
    assert found["rejects_by_reason"] == {"truncated": 2, "not_image": 1}
    assert found["shards"] == {"total": 5, "committed": 3, "quarantined": 0}


def test_summary_of_an_earlier_stretch_is_not_believed(tmp_path: Path) -> None:
    stale = {"shards": {"total": 5, "committed": 2, "quarantined": 0}, "samples": 1, "rejects_by_reason": {}}
    found = numbers(healthy(summary=stale).write(tmp_path / "run"))
    assert found["accounts"]["samples"] == 100
    assert found["verdict"]["level"] == "open"


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run here"):
        report(tmp_path)


# --- evidence --------------------------------------------------------------------------------------------------------


def test_evidence_amiss_is_named_and_left_out(tmp_path: Path) -> None:
    case = healthy()
    names = [shard.id for shard in case.shards]
    case.shards[0].views = None
    case.shards[1].footer = {"fingerprint": "a" * 64}
    case.shards[2].footer = {"schema": 9}
    output = case.write(tmp_path / "run")
    (output / "qa" / f"{names[3]}.parquet").write_bytes(b"PAR1 not really")
    coverage = numbers(output)["coverage"]
    assert (coverage["missing"], coverage["foreign"]) == ([names[0]], [names[1]])
    assert sorted(coverage["unreadable"]) == [names[2], names[3]]
    assert (coverage["committed"], coverage["found"], coverage["read"]) == (5, 4, 1)


@pytest.mark.parametrize(
    "damage", [{"codebook_size": 1 << 40}, {"codebook_size": 8}, {"histogram": "AAAA"}, {"counts": {}}]
)
def test_footer_that_lies(damage: dict[str, Any], tmp_path: Path) -> None:
    case = healthy()
    case.shards[2].footer = damage
    found = numbers(case.write(tmp_path / "run"))
    assert found["coverage"]["read"] == 4
    assert case.shards[2].id in [*found["coverage"]["unreadable"], *found["coverage"]["foreign"]]


def test_metric_that_is_no_number(tmp_path: Path) -> None:
    case = healthy()
    case.shards[2].views = [view("k", 1, psnr=float("nan"))]
    coverage = numbers(case.write(tmp_path / "run"))["coverage"]
    assert list(coverage["unreadable"]) == [case.shards[2].id]


def test_evidence_without_a_part_is_no_evidence(tmp_path: Path) -> None:
    case = healthy(committed=3, summary=None)
    output = case.write(tmp_path / "run")
    case.write_evidence(case.shards[4], output / "qa" / f"{case.shards[4].id}.parquet")
    assert numbers(output)["coverage"]["found"] == 3


def test_part_that_cannot_be_read(tmp_path: Path) -> None:
    case = healthy()
    output = case.write(tmp_path / "run")
    (output / "tokens" / f"{case.shards[0].id}.parquet").write_bytes(b"PAR1 not really")
    assert numbers(output)["positions"]["parts"] == 4


def test_run_without_evidence(tmp_path: Path) -> None:
    case = healthy()
    case.shards = [replace(shard, views=None) for shard in case.shards]
    made = report(case.write(tmp_path / "run"))
    assert "nothing was judged" in made.page
    assert made.document["runs"][0]["metrics"]["psnr"] is None


def test_metrics_speak_of_random_views_only(tmp_path: Path) -> None:
    views = [view("a", 0, psnr=20.0), view("b", 1, psnr=30.0), view("c", 2, psnr=5.0, kind="unusual")]
    found = numbers(RunCase([ShardCase("s", views=views)]).write(tmp_path / "run"))
    assert found["metrics"]["psnr"]["mean"]["mean"] == pytest.approx(25.0)
    assert found["images"] == {"random": 2, "unusual": 1}
    assert found["metrics"]["lpips"] is None


# --- shards ----------------------------------------------------------------------------------------------------------


def test_shard_with_other_codes_is_the_most_divergent(tmp_path: Path) -> None:
    case = healthy(8)
    case.shards[5].histogram = np.eye(16)[3] * 320
    lines = numbers(case.write(tmp_path / "run"))["outliers"]
    assert lines[0]["id"] == case.shards[5].id
    assert lines[0]["divergence"] > 5 * lines[1]["divergence"]


def test_accused_shard_is_marked_and_shown_first(tmp_path: Path) -> None:
    case = healthy(summary={"gates": [FINDING]})
    made = report(case.write(tmp_path / "run"))
    accused = [line["id"] for line in made.document["runs"][0]["outliers"] if line["accused"]]
    assert accused == [case.shards[2].id]
    assert {sample["shard"] for (sample,) in made.document["galleries"]["accused"]} == {case.shards[2].id}
    assert f'href="#a-{case.shards[2].id}"' in made.page
    assert f'id="a-{case.shards[2].id}"' in made.page


def test_worst_views_come_first(tmp_path: Path) -> None:
    made = report(healthy().write(tmp_path / "run"))
    shown = [sample["psnr"] for (sample,) in made.document["galleries"]["worst"]]
    assert shown == sorted(shown)
    assert len(shown) == 15


# --- bounds ----------------------------------------------------------------------------------------------------------


def test_choice_of_shards_among_100_000() -> None:
    names = [f"{number:06d}-abc" for number in range(100_000)]
    chosen = choose(names, 1024, always=["000007-abc"])
    assert (len(chosen), "000007-abc" in chosen) == (MAX_SHARDS, True)
    assert chosen == choose(reversed(names), 1024, always=["000007-abc"])
    assert (
        len(set(chosen) & set(choose(names[::2], 1024))) > MAX_SHARDS * 0.4
    )  # mostly the same shards of a smaller run
    assert len(choose(names, 1 << 18)) == 1024


def test_page_of_many_shards_stays_small(tmp_path: Path) -> None:
    case = healthy(MAX_SHARDS + 60)
    made = report(case.write(tmp_path / "run"))
    found = made.document["runs"][0]
    assert found["coverage"]["read"] == MAX_SHARDS
    assert len(found["outliers"]) <= 200
    assert "chosen by the hash of their ids" in made.page
    assert len(made.page) < 8e6


def test_large_pictures_are_fewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.qa.report.gallery.MAX_BYTES", 12_000)
    made = report(healthy(12).write(tmp_path / "run"))
    assert 0 < len(made.document["galleries"]["random"]) < 24
    assert "to keep this file small" in made.page


# --- two runs --------------------------------------------------------------------------------------------------------


def better(case: RunCase, by: float) -> RunCase:
    """The same images, reconstructed with a PSNR higher by about `by`."""
    shards = [
        replace(
            shard,
            views=[
                row | {"psnr": row["psnr"] + by + 0.1 * (i % 2), "reconstruction": row["original"]}
                for i, row in enumerate(shard.views or [])
            ],
        )
        for shard in case.shards
    ]
    return replace(case, shards=shards, job={"fingerprint": "e" * 64, "tokenmill": "0.2.0"})


def test_paired_difference_is_known_better_than_each_mean(tmp_path: Path) -> None:
    first = healthy()
    made = report(first.write(tmp_path / "a"), better(first, 1.0).write(tmp_path / "b"))
    found = made.document["paired"]
    difference, mean = found["differences"]["psnr"], made.document["runs"][0]["metrics"]["psnr"]["mean"]
    assert found["images"] == 10
    assert difference["mean"] == pytest.approx(1.05, abs=1e-4)
    assert difference["high"] - difference["low"] < (mean["high"] - mean["low"]) / 20
    assert "B − A, same images" in made.page  # noqa: RUF001


def test_original_of_a_pair_is_shown_once(tmp_path: Path) -> None:
    first = healthy(2)
    page = report(first.write(tmp_path / "a"), better(first, 1.0).write(tmp_path / "b")).page
    exhibit = page[page.index('<li class="exhibit">') :].partition("</li>")[0]
    labels = [part.partition('"')[0] for part in exhibit.split('data-label="')[1:]]
    assert labels == ["original", "reconstruction A", "difference A", "reconstruction B", "difference B"]


def test_provenance_that_differs_is_marked(tmp_path: Path) -> None:
    first = healthy(2)
    page = report(first.write(tmp_path / "a"), better(first, 1.0).write(tmp_path / "b")).page
    rows = [row for row in page.split("<tr") if row.startswith(' class="differs"')]
    assert len(rows) == 1
    assert "tokenmill" in rows[0]


def test_keys_that_repeat_are_paired_within_their_shard(tmp_path: Path) -> None:
    shards = [ShardCase(name, views=[view("same", 0, psnr=level)]) for name, level in (("x", 20.0), ("y", 30.0))]
    first = RunCase(shards)
    made = report(first.write(tmp_path / "a"), better(first, 2.0).write(tmp_path / "b"))
    assert made.document["paired"]["images"] == 2
    assert made.document["paired"]["differences"]["psnr"]["mean"] == pytest.approx(2.0)


def test_runs_with_nothing_in_common(tmp_path: Path) -> None:
    one, two = (RunCase([ShardCase(name, views=[view(name, 0)])]) for name in ("x", "y"))
    made = report(one.write(tmp_path / "a"), two.write(tmp_path / "b"))
    assert made.document["paired"]["images"] == 0
    assert "evidence of no image in common" in made.page


# --- speed and safety ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "unit"), [(3.0, "seconds"), (130.0, "minutes"), (9000.0, "hours")])
def test_time_axis_has_a_unit_that_suits_it(seconds: float, unit: str) -> None:
    ends = np.array([seconds / 2, seconds])
    for plot in (rate_over_time(ends, np.array([5.0, 7.0])), busy_over_time(ends, {"encode": np.array([0.5, 1.0])})):
        assert f"{unit} since the start</text>" in plot
        assert plot.count('<path class="line') == 1


def test_every_stage_has_a_colour(tmp_path: Path) -> None:
    output = healthy().write(tmp_path / "run")
    (output / "report").mkdir()
    log = Timeline({}, points=[Point(60.0, 10, 1, dict.fromkeys(Part, 1.0))])
    (output / "report" / "events.json").write_bytes(log.to_json())
    page = report(output).page
    for number, stage in enumerate(Part):
        assert f'<span class="swatch s{number}"></span>{stage} ' in page
        assert page.count(f"--s{number}: ") == 2, "light and dark"
        assert f".plot .s{number} {{ stroke: var(--s{number}); }}" in page


@pytest.mark.parametrize(("price", "cost"), [(3.0, 0.1), (0.0, 0.0), (None, None)])
def test_throughput_from_the_log_of_counters(price: float | None, cost: float | None, tmp_path: Path) -> None:
    output = healthy().write(tmp_path / "run")
    points = [{"seconds": 10.0 * n, "images": 50 * n, "actors": 2, "busy": {"encode": 18.0 * n}} for n in range(1, 7)]
    log = {"schema": 1, "lanes": {"encode": 1}, "points": points, "price_per_actor_hour": price}
    (output / "report").mkdir()
    (output / "report" / "events.json").write_text(json.dumps(log))
    made = report(output)
    speed = made.document["runs"][0]["speed"]
    assert (speed["images_per_second"], speed["bound"], speed["device_busy"]) == (
        pytest.approx(5),
        "encode",
        pytest.approx(0.9),
    )
    assert (speed["actor_hours"], speed["cost"]) == (pytest.approx(1 / 30), pytest.approx(cost))
    assert ("<dt>Cost</dt>" in made.page) is (cost is not None)


@pytest.mark.parametrize(
    "text", ["", "{}", '{"schema": 1, "lanes": {}, "points": [{"seconds": 0, "images": 0, "actors": 1, "busy": {}}]}']
)
def test_log_of_counters_that_is_damaged(text: str, tmp_path: Path) -> None:
    output = healthy().write(tmp_path / "run")
    (output / "report").mkdir()
    (output / "report" / "events.json").write_text(text)
    made = report(output)
    assert made.document["runs"][0]["speed"] is None
    assert "Not recorded" in made.page


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'"
    case = healthy(2, summary={"gates": [FINDING | {"message": evil, "where": evil}]})
    case.shards[0].views = [view(evil, 1)]
    case.shards[0].footer = {"rejects_by_reason": {evil: 1}, "not_computed": {"lpips": evil}}
    page = report(case.write(tmp_path / "run")).page
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert page.count("<script>") == 1


def test_page_and_document_are_written(tmp_path: Path) -> None:
    made = report(healthy().write(tmp_path / "run"))
    for name, document in (("index.html", "report.json"), ("compare.html", "compare.json")):
        publish_report(Storage(), made, f"file://{tmp_path}/run/report/{name}")
        assert (tmp_path / "run" / "report" / name).read_text() == made.page
        assert json.loads((tmp_path / "run" / "report" / document).read_text()) == made.document
