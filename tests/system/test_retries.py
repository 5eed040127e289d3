"""`run --retry-rejects`: samples that a passing fault made rejects become rows; their parts change in one step."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.chaos.poison import with_comment
from tests.support.checker import Watcher
from tests.support.commands import last_json, parts, tokenmill
from tests.support.corpora import sample, write_shard
from tests.support.faults import Fault, Faults

pytestmark = pytest.mark.system
SHARDS, SAMPLES = 3, 20
STRUCK, MARK = (1, 7), "struck"  # shard and sample; not of the first shard, whose images calibrate the run
DEATHS = 3  # with its neighbours, alone, and in the child process that decodes for a careful attempt


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """3 shards of 20 good samples, one of which a fault can tell from the others."""
    (tmp_path / "in").mkdir()
    for shard in range(SHARDS):
        samples = {f"{shard}-{index}": sample(shard, index) for index in range(SAMPLES)}
        if shard == STRUCK[0]:
            members = samples[f"{shard}-{STRUCK[1]}"]
            members["jpg"] = with_comment(members["jpg"], MARK.encode())
        write_shard(tmp_path / "in" / f"{shard:05d}.tar", samples)
    return tmp_path / "in"


def test_reject_of_a_passing_fault(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    faults, output = Faults(tmp_path), tmp_path / "out"
    settings = ["--set", "image.size=32", "--set", "limits.backoff_seconds=0.05", "--set", "limits.max_attempts=1"]
    command = ["run", "--shards", corpus, "--model", tiny_model, "--output", output, *settings, "--json"]
    faults.plan(Fault(point="sample", action="segv", marker=MARK, times=DEATHS))
    first = tokenmill(*command, **faults.environment)
    assert first.returncode == 0, first.stderr
    assert faults.fired() == {"segv at sample": DEATHS}
    summary = last_json(first)
    assert (summary["rows"], summary["rejects_by_reason"]) == (SHARDS * SAMPLES - 1, {"crashed": 1})
    check_that_a_retry_mends_it(output, command)


def check_that_a_retry_mends_it(output: Path, command: list[object]) -> None:
    before = parts(output)
    [struck] = (name for name in before if name.startswith(f"{STRUCK[0]:05d}"))
    old = pq.read_table(output / "tokens" / struck)
    with Watcher(output) as watcher:
        again = tokenmill(*command, "--retry-rejects")
    assert again.returncode == 0, again.stderr
    summary = last_json(again)
    assert (summary["samples"], summary["rows"], summary["rejects"]) == (SHARDS * SAMPLES, SHARDS * SAMPLES, 0)
    assert {line.partition(" from ")[0] for line in watcher.violations} == {f"{struck} changed"}, "in one step"
    after = parts(output)
    assert {name for name in after if after[name] != before.get(name)} == {struck}
    assert after.keys() == before.keys()
    new = pq.read_table(output / "tokens" / struck).to_pylist()
    assert [row["sample_index"] for row in new] == list(range(SAMPLES))
    assert [row for row in new if row["sample_index"] != STRUCK[1]] == old.to_pylist()
    assert pq.read_table(output / "rejects.parquet").num_rows == 0
    verified = tokenmill("verify", output)
    assert verified.returncode == 0, verified.stdout
