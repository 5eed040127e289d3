"""How a run ends: who may say that OUTPUT is complete, and what summary.json tells of a run that failed."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.ending import Ending
from pipeline.monitor import ExitCode
from pipeline.output import Output
from pipeline.progress import Silent
from pipeline.qa.config import QaConfig
from pipeline.qa.gates import Gates
from pipeline.qa.report.figures import verdict
from pipeline.qa.report.run import read_run
from pipeline.resume import what_is_left
from pipeline.shards.manifest import Shard, shard_id
from pipeline.signals import Stop
from pipeline.storage import Storage
from tests.support.token_runs import make_run

STRANGER = Shard(shard_id("s3://corpus/99999.tar"), "s3://corpus/99999.tar", 1000, "etag")
REJECTS = frozenset((0, i) for i in range(4))


@pytest.fixture
def output(tmp_path: Path) -> Output:
    """Two shards of 10 and 7 samples, all committed; 4 of the samples are rejects."""
    return Output(Storage(), make_run(tmp_path / "out", rejects=REJECTS, finished=False))


def end(output: Output, limit: float = 1.0) -> tuple[ExitCode, str]:
    """The end of a run that had nothing left to do."""
    shards = output.manifest()
    todo = what_is_left(output, shards, retry_quarantined=False, retry_rejects=False)
    assert not todo.pending
    ending = Ending(output, todo, Gates(QaConfig()), limit, Stop(), Silent())
    return ending.account({}, stopped=False, gate=None)[:2]


def test_success_is_written_when_every_shard_is_committed(output: Output) -> None:
    assert end(output) == (ExitCode.OK, "finished: 2 of 2 shards are committed")
    assert output.succeeded()


@pytest.mark.parametrize("taken_back", ["at once", "after the end"])
@pytest.mark.parametrize("moment", ["_accounts", "parts", "succeed"])
def test_shards_that_another_driver_adds_at_the_end(
    output: Output, moment: str, taken_back: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever step of this driver's end the other one's shards come in, no _SUCCESS stands beside them."""
    other, added = Output(Storage(), output.url), []
    step: Callable = getattr(output, moment)

    def beside_the_other(*arguments: object) -> object:
        if not added:
            added.append(other.extend_manifest([STRANGER]))
            if taken_back == "at once":
                other.take_back_success()
        return step(*arguments)

    monkeypatch.setattr(output, moment, beside_the_other)
    code, message = end(output)
    assert code is ExitCode.STOPPED
    assert "all shards of this run are done, but not 1 that another run has added meanwhile" in message
    assert added
    assert not output.succeeded()


def test_too_many_rejects_are_a_finding(output: Output) -> None:
    code, message = end(output, limit=0.1)
    assert code is ExitCode.INCOMPLETE
    assert message.startswith("23.5% of the samples were rejected (limits.max_reject_fraction is 10.0%): 4 corrupt")
    summary = output.summary()
    assert summary is not None
    [finding] = summary["gates"]
    assert (finding["gate"], finding["where"], finding["limit"]) == ("reject_fraction", "run", 0.1)
    assert finding["value"] == pytest.approx(4 / 17)
    assert not output.succeeded()
    told = verdict(read_run(Storage(), output.url))
    assert (told.exit_code, told.headline) == (3, "Failed: reject_fraction")


def test_rejects_below_the_limit_are_no_finding(output: Output) -> None:
    assert end(output, limit=0.24)[0] is ExitCode.OK
    assert (output.summary() or {})["gates"] == []
