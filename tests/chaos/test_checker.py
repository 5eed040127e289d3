"""The checker and the faults themselves: what they must see, they see."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.chaos.ground import Ground
from tests.support.checker import Watcher, problems
from tests.support.commands import environment
from tests.support.faults import Fault, Faults

pytestmark = pytest.mark.chaos


def first_part(output: Path) -> Path:
    return min(output.glob("tokens/*.parquet"))


def rewrite(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], object]:
    """A damage that writes the first part anew, with other rows."""

    def damage(output: Path) -> None:
        with pq.ParquetFile(first_part(output)) as file:
            table = change(file.read())
        pq.write_table(table, first_part(output))

    return damage


def miscount(output: Path) -> None:
    summary = json.loads((output / "summary.json").read_text())
    (output / "summary.json").write_text(json.dumps(summary | {"rows": summary["rows"] + 1}))


def invent_reject(output: Path) -> None:
    table = pq.read_table(output / "rejects.parquet")
    row = {"key": "x", "shard": "y", "sample_index": 0, "stage": "decode", "reason": "crashed", "detail": ""}
    pq.write_table(pa.concat_tables([table, pa.Table.from_pylist([row], table.schema)]), output / "rejects.parquet")


@pytest.mark.parametrize(
    ("damage", "seen"),
    [
        (lambda output: first_part(output).unlink(), "is missing"),
        (lambda output: (output / "tokens" / ".left.tmp").touch(), "is no part of this run"),
        (rewrite(lambda table: table), "are not those of an undisturbed run"),
        (rewrite(lambda table: pa.concat_tables([table, table.slice(3, 1)])), "(3, 0)] come more than once"),
        (rewrite(lambda table: table.slice(1)), "not exactly one of row and reject: [(0, '0000000')]"),
        (miscount, "summary.json says"),
        (invent_reject, "rejects.parquet lists [('y', 0)]"),
    ],
)
def test_damaged_output(undisturbed: Ground, tmp_path: Path, damage: Callable[[Path], object], seen: str) -> None:
    output = tmp_path / "out"
    shutil.copytree(undisturbed.corpus.parent / "out", output)
    assert problems(output, undisturbed.corpus, undisturbed.undisturbed) == []
    damage(output)
    assert seen in " ".join(problems(output, undisturbed.corpus, undisturbed.undisturbed))


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        (lambda part: part.unlink(), "vanished"),
        (lambda part: part.write_bytes(part.read_bytes()), "changed from"),
        (
            lambda part: shutil.copy(part, part.with_name("copy")) and part.with_name("copy").replace(part),
            "changed from",
        ),
        (lambda part: part.with_name("new.parquet").write_bytes(part.read_bytes()[:-9]), "new.parquet cannot be read"),
    ],
)
def test_watcher_of_parts_that_change(
    undisturbed: Ground, tmp_path: Path, change: Callable[[Path], object], seen: str
) -> None:
    output = tmp_path / "out"
    shutil.copytree(undisturbed.corpus.parent / "out", output)
    with Watcher(output) as watcher:
        watcher.look()
        assert watcher.violations == []
        change(first_part(output))
        watcher.look()
    assert any(seen in violation for violation in watcher.violations)


def test_fault_fires_as_often_as_planned_in_all_processes_together(tmp_path: Path) -> None:
    faults = Faults(tmp_path)
    faults.plan(Fault(point="sample", action="kill", marker="poison", times=2), Fault(point="sample", action="sleep"))
    code = "from pipeline.images import find_image; find_image({'jpg': b'some poison'})"
    env = environment(**faults.environment)
    codes = [subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode for _ in range(3)]
    assert codes == [-9, -9, 0]
    assert faults.fired() == {"kill at sample": 2, "sleep at sample": 1}
    assert "FAULT_PLAN" not in os.environ, "the tests themselves are not disturbed"
