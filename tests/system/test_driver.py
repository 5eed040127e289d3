"""The driver and a real Ray, with actors that follow a script: every way an actor or a shard can misbehave."""

import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from pipeline import driver, ending, output
from pipeline.config import resolve
from pipeline.errors import RunFailed, UsageError
from pipeline.monitor import ExitCode, Result
from pipeline.on_ray import fleet
from pipeline.output import Output
from pipeline.progress import Fact, Snapshot
from pipeline.shards.manifest import freeze
from pipeline.storage import Storage
from pipeline.tokens.schema import PartFooter
from tests.support.standin import RemoteStandIn

pytestmark = pytest.mark.system
Run = Callable[..., Result]


class Notes:
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.events: list[tuple[str, dict[str, Fact]]] = []
        self.counts: list[tuple[int, int]] = []
        self.actors: list[int] = []
        self.images: list[int] = []

    def note(self, message: str, **facts: Fact) -> None:
        self.lines.append(message)

    def event(self, name: str, **facts: Fact) -> None:
        self.events.append((name, facts))

    def show(self, snapshot: Snapshot) -> None:
        self.actors.append(snapshot.actors)
        self.images.append(snapshot.images)

    def count(self, what: str, done: int, total: int) -> None:
        self.counts.append((done, total))

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def one_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    yield
    ray.shutdown()


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def run(one_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notes: Notes) -> Run:
    """Run the driver over empty shards `a`..`h` with a script, and quick limits."""
    monkeypatch.setattr(fleet, "RemoteWorker", RemoteStandIn)
    monkeypatch.setattr(fleet, "PULSE_SECONDS", 0.1)
    for name in "abcdefgh":
        (tmp_path / f"{name}.tar").write_bytes(bytes(1000))

    def start(script: dict[str, list[str]], *settings: str) -> Result:
        (tmp_path / "script.json").write_text(json.dumps(script))
        quick = [
            "qa.samples_per_shard=0",
            "limits.backoff_seconds=0.05",
            "cluster.actors=2",
            "cluster.cpus_per_actor=1",
            *settings,
        ]
        flags = {"shards": [str(tmp_path / "*.tar")], "model": "none", "output": str(tmp_path / "out")}
        return driver.run(resolve(settings=quick, flags=flags, environment={}), notes)

    return start


def fired(folder: Path, name: str) -> int:
    """How many attempts the stand-ins counted."""
    return len(list(folder.glob(f"{name}.*.fired")))


def test_script_without_faults(run: Run, tmp_path: Path, notes: Notes) -> None:
    result = run({}, "columns.caption=text", "columns.label=null")
    assert result.exit_code is ExitCode.OK
    assert result.summary["rows"] == 800
    assert [line for line in notes.lines if "is the extension right?" in line] == [
        "columns.caption=text: no row of this run has a value in this column; is the extension right?"
    ]
    assert [fired(tmp_path, name) for name in "abcdefgh"] == [1] * 8
    for event in ("begun", "committed"):
        told = {(facts["shard"][0], facts["attempt"]) for name, facts in notes.events if name == event}
        assert told == {(name, 1) for name in "abcdefgh"}


@pytest.mark.parametrize("written", [False, True])
def test_driver_that_ends_while_it_adds_shards_leaves_no_success(
    run: Run, tmp_path: Path, written: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before or after the manifest is written; `written`: a driver that knows nothing of them ends in that moment."""
    assert run({}).exit_code is ExitCode.OK
    (tmp_path / "i.tar").write_bytes(bytes(1000))
    extend, out, reached = Output.extend_manifest, Output(Storage(), str(tmp_path / "out")), []

    def cut(self: Output, *arguments: Any) -> Any:
        reached.append(out.succeeded())
        merged = extend(self, *arguments)
        if not written:
            raise RuntimeError("killed here")
        Storage().write(f"{out.url}/_SUCCESS", b"")
        return merged

    monkeypatch.setattr(Output, "extend_manifest", cut)
    if written:
        run({"i": ["task"] * 9})
    else:
        with pytest.raises(RuntimeError, match="killed here"):
            run({})
    assert reached == [False], "taken back before the shards are there"
    assert len(out.manifest()) == 9
    assert not out.succeeded()


def test_counts_at_the_end_do_not_wait_for_a_pulse(run: Run, notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "PULSE_SECONDS", 1000.0)
    assert run({}).exit_code is ExitCode.OK
    assert notes.images[-1] == 800


def test_transient_failures_are_tried_again(run: Run, tmp_path: Path) -> None:
    result = run({"a": ["task", "infra", "task"], "b": ["infra"] * 5})
    assert result.exit_code is ExitCode.OK
    assert (fired(tmp_path, "a"), fired(tmp_path, "b")) == (4, 6)


def test_bad_shard_is_quarantined_with_its_reason(run: Run, tmp_path: Path, notes: Notes) -> None:
    result = run({"a": ["task"] * 9})
    assert result.exit_code is ExitCode.INCOMPLETE
    [bad] = result.summary["quarantined"]
    assert (bad["kind"], bad["reason"], bad["message"]) == ("task", "truncated", "the shard is cut")
    assert fired(tmp_path, "a") == 3
    assert any("attempt 3 failed, quarantined: the shard is cut" in line for line in notes.lines)


def test_actor_that_dies_costs_nobody_else(run: Run, tmp_path: Path, notes: Notes) -> None:
    result = run({"a": ["die", "die unless careful", "die unless careful"]})
    assert result.exit_code is ExitCode.OK, "careful at the third attempt"
    assert fired(tmp_path, "a") == 3
    assert sum("is replaced (it died" in line for line in notes.lines) == 2


def test_attempt_that_hangs_is_ended(run: Run, tmp_path: Path, notes: Notes) -> None:
    limits = ("limits.stall_seconds=6", "limits.sample_seconds=1", "limits.speculate_factor=0")
    result = run({"a": ["hang"]}, *limits)
    assert result.exit_code is ExitCode.OK
    assert fired(tmp_path, "a") == 2
    assert any("no byte and no sample moved" in line for line in notes.lines)


def test_unfit_actor_is_replaced_and_its_shards_are_not_charged(run: Run, tmp_path: Path) -> None:
    result = run({name: ["unfit"] for name in "abc"}, "limits.max_attempts=1")
    assert result.exit_code is ExitCode.OK
    assert all(fired(tmp_path, name) >= 2 for name in "abc"), "more if an actor went while another shard was on it"


def test_fatal_failure_stops_the_run_with_its_words(run: Run) -> None:
    with pytest.raises(UsageError, match="permission denied"):
        run({"c": ["fatal"]})


def test_garbage_stops_the_run(run: Run, notes: Notes) -> None:
    result = run({"a": ["rejects"], "b": ["rejects"], "h": ["slow"]}, "cluster.shards_in_flight=1")
    assert result.exit_code is ExitCode.INCOMPLETE
    assert [line for line in notes.lines if "of the samples of this run were rejected" in line]
    assert "of the samples were rejected (limits.max_reject_fraction is 10.0%)" in result.message
    assert "900 corrupt" in result.message or "1,800 corrupt" in result.message
    assert result.summary["shards"]["committed"] < 8
    assert [(finding["gate"], finding["where"]) for finding in result.summary["gates"]] == [("reject_fraction", "run")]


JUDGED = ("qa.samples_per_shard=4", "cluster.shards_in_flight=1", "limits.speculate_factor=0")
COPIES = {"a": ["placeholders"]}


@pytest.mark.parametrize(("script", "actors", "code"), [(COPIES, 2, ExitCode.INCOMPLETE), ({}, 4, ExitCode.OK)])
def test_rest_of_the_fleet_starts_when_the_canary_has_passed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: dict, actors: int, code: ExitCode
) -> None:
    asked, recruit = [], fleet.Fleet.recruit
    monkeypatch.setattr(fleet.Fleet, "recruit", lambda self: asked.append(self) or recruit(self))
    result = run(script, *JUDGED, "cluster.actors=4")
    assert (result.exit_code, len(asked)) == (code, actors)
    assert fired(tmp_path, "b") == (not script), "no other shard began"


def test_gate_that_failed_fails_again_until_its_limit_is_changed(run: Run, tmp_path: Path) -> None:
    first = run(COPIES, *JUDGED)
    [finding] = first.summary["gates"]
    assert (first.exit_code, first.summary["shards"]["committed"]) == (ExitCode.INCOMPLETE, 1)
    assert (finding["gate"], finding["where"][-5:], finding["value"]) == ("duplicate_grids", "a.tar", 0.9)
    again = run({}, *JUDGED)
    assert (again.exit_code, again.summary["gates"]) == (ExitCode.INCOMPLETE, [finding])
    assert fired(tmp_path, "a") + fired(tmp_path, "b") == 1, "nothing was tried"
    opened = run({}, *JUDGED, "qa.max_duplicate_fraction=null")
    assert (opened.exit_code, opened.summary["gates"]) == (ExitCode.OK, [])
    assert opened.summary["shards"]["committed"] == 8


def test_gate_that_only_marks_lets_the_run_go_on(run: Run) -> None:
    result = run(COPIES, *JUDGED, "qa.on_fail=mark")
    assert (result.exit_code, result.summary["shards"]["committed"]) == (ExitCode.INCOMPLETE, 8)
    assert [finding["gate"] for finding in result.summary["gates"]] == ["duplicate_grids"]


def test_device_that_fails_the_golden_images_ends_the_run_before_the_first_shard(run: Run, tmp_path: Path) -> None:
    result = run({"start": ["wrong tokens"] * 2}, *JUDGED)
    assert (result.exit_code, result.summary["shards"]["committed"]) == (ExitCode.INCOMPLETE, 0)
    assert {finding["gate"] for finding in result.summary["gates"]} == {"golden_agreement"}
    assert {finding["where"] for finding in result.summary["gates"]} <= {"actor-0", "actor-1"}
    assert [fired(tmp_path, name) for name in "abcdefgh"] == [0] * 8


@pytest.mark.parametrize(
    ("script", "settings", "error", "says"),
    [
        (
            {"load": ["ok", "other weights"], "measure": ["wait for two"]},
            (),
            RunFailed,
            "loaded another model than the first actor",
        ),
        ({"load": ["die"] * 9}, (), RunFailed, "3 actors in a row ended before they were ready"),
        ({"measure": ["disagree"]}, ("model.precision=fp16",), UsageError, "keeps only 50.00% of the tokens"),
        ({"measure": ["die"] * 3}, ("model.precision=fp16",), UsageError, "could not be measured"),
    ],
)
def test_runs_that_must_not_begin(run: Run, tmp_path: Path, script, settings, error, says: str) -> None:
    with pytest.raises(error, match=says):
        run(script, *settings)
    assert not list(tmp_path.glob("out/tokens/*.parquet"))
    assert fired(tmp_path, next(iter(script))) >= 1


def test_calibration_that_kills_is_given_up_and_the_work_is_done(run: Run, tmp_path: Path) -> None:
    result = run({"measure": ["die"] * 9})
    assert result.exit_code is ExitCode.OK
    assert fired(tmp_path, "measure") == driver.MAX_SPOILT


def test_precision_that_auto_chose_stays_when_the_run_goes_on(run: Run, tmp_path: Path) -> None:
    run({"measure": ["half is faster"]})
    next(tmp_path.glob("out/tokens/a-*.parquet")).unlink()
    assert run({}).exit_code is ExitCode.OK, "measured again, exact would be chosen and the tokens would not agree"
    assert run({}).exit_code is ExitCode.OK, "nor with nothing left to measure on"
    assert json.loads((tmp_path / "out" / "job.json").read_text())["identity"]["precision"] == "fp16"


def test_straggler_is_repeated_and_the_loser_told_to_stop(run: Run, tmp_path: Path) -> None:
    began = time.monotonic()
    result = run({"a": ["slow"]}, "cluster.shards_in_flight=1")
    assert result.exit_code is ExitCode.OK
    assert fired(tmp_path, "a") == 2
    assert time.monotonic() - began < 25, "the slow attempt alone takes 30 s"


def test_idle_actors_are_released_but_for_one_that_may_repeat_a_straggler(
    run: Run, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "RELEASE_SECONDS", 3.0)
    limits = ("limits.stall_seconds=20", "limits.sample_seconds=1", "limits.speculate_factor=0")
    result = run({"a": ["hang"]}, "cluster.actors=1..4", "cluster.shards_in_flight=1", *limits)
    assert result.exit_code is ExitCode.OK
    joined = notes.actors.index(max(notes.actors))
    assert notes.actors[joined] > 2
    assert 2 in notes.actors[joined:], "the one that hangs, and one to spare"


@pytest.mark.parametrize(("signals", "drain", "within"), [(2, 60, 10), (1, 1, 12)])
def test_stop_at_once_and_drain_with_a_deadline(
    run: Run, tmp_path: Path, signals: int, drain: int, within: float
) -> None:
    stopped_at = []

    def interrupt() -> None:
        while not fired(tmp_path, "a"):
            time.sleep(0.02)
        for _ in range(signals):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)
        stopped_at.append(time.monotonic())

    thread = threading.Thread(target=interrupt)
    thread.start()
    settings = ("limits.speculate_factor=0", f"limits.drain_seconds={drain}")
    result = run({name: ["slow"] * 9 for name in "abcdefgh"}, *settings)
    thread.join()
    assert result.exit_code is ExitCode.STOPPED
    assert time.monotonic() - stopped_at[0] < within


def test_accounts_end_at_once_when_asked(
    run: Run, tmp_path: Path, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that hangs while the accounts are made, and one Ctrl-C; the same command makes them later."""
    read, reads, heals, stopped_at = output.read_footer, itertools.count(1), threading.Event(), []

    def hanging_read(storage: Storage, url: str) -> PartFooter:
        if next(reads) == 4:
            while len(notes.counts) < 3:
                time.sleep(0.01)
            stopped_at.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)
        if stopped_at:
            heals.wait(60)
        return read(storage, url)

    with monkeypatch.context() as patch:
        patch.setattr(output, "read_footer", hanging_read)
        patch.setattr(output, "FOOTER_THREADS", 1)
        patch.setattr(ending, "SHOW_SECONDS", 0.0)
        result = run({})
        took = time.monotonic() - stopped_at[0]
        heals.set()
    assert (result.exit_code, result.summary) == (ExitCode.STOPPED, {})
    assert "run the same command again" in result.message
    assert took < 3
    assert notes.counts == [(1, 8), (2, 8), (3, 8)]
    assert not (tmp_path / "out" / "summary.json").exists()
    again = run({})
    assert (again.exit_code, again.summary["rows"]) == (ExitCode.OK, 800)


def test_shards_that_another_run_adds_meanwhile(
    run: Run, tmp_path: Path, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, added = tmp_path / "other" / "i.tar", []
    other.parent.mkdir()
    other.write_bytes(bytes(1000))

    def add(_: object) -> None:
        if (tmp_path / "out" / "manifest.parquet").exists() and not added:
            added.extend(Output(Storage(), str(tmp_path / "out")).extend_manifest(freeze(Storage(), [str(other)])))

    monkeypatch.setattr(notes, "show", add)
    monkeypatch.setattr(ending, "SHOW_SECONDS", 0.0)
    result = run({"a": ["infra"]})
    assert len(added) == 9
    assert result.exit_code is ExitCode.STOPPED
    assert "1 that another run has added meanwhile: 8 of 9 shards" in result.message
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    again = run({})
    assert (again.exit_code, fired(tmp_path, "i")) == (ExitCode.OK, 1)
