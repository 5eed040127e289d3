"""Samples that kill, hang or devour whatever decodes them: each becomes a reject by name, all others become rows."""

from collections import Counter
from pathlib import Path

import pytest

from tests.chaos.ground import FULL, LONGEST, Ground
from tests.chaos.poison import PLACES, key, mark
from tests.support.checker import Part
from tests.support.faults import ALWAYS, Fault

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(2 * LONGEST)]
TOGETHER = ("segv", "hang", "devour")
CASES = [TOGETHER, *((kind,) for kind in PLACES if FULL)]
SETTINGS = [
    "limits.max_attempts=1",  # whoever is charged for a neighbour's death is given up, and the run ends with 3
    "limits.stall_seconds=20",  # an actor starts in a third of it on full cores
    "limits.sample_seconds=4",
    f"limits.sample_bytes={512 << 20}",
]


@pytest.mark.parametrize("kinds", CASES, ids="+".join)
def test_poison_samples(ground: Ground, tmp_path: Path, fired: Counter[str], kinds: tuple[str, ...]) -> None:
    ground.faults.plan(*map(poison, kinds))
    with ground.watched(tmp_path, differ=len(kinds)):
        result = ground.run(tmp_path, *SETTINGS)
        fired.update(ground.faults.fired())
        assert result.returncode == 0, result.stderr
    for kind in kinds:
        assert fired[f"{poison(kind).action} at sample"], f"{kind} never happened"
        check_reject(ground, tmp_path, *PLACES[kind])


def poison(kind: str) -> Fault:
    """Strikes whatever process decodes the sample, again and again."""
    return Fault(point="sample", action=kind.split(maxsplit=1)[0], marker=mark(kind), times=ALWAYS, amount=1 << 30)


def check_reject(ground: Ground, output: Path, shard: int, index: int) -> None:
    """The poison is a reject; the shard's other samples are the rows of the undisturbed run."""
    name = next(name for name in ground.undisturbed if name.startswith(f"{shard:05d}-"))
    part, undisturbed = (Part.read(folder / "tokens" / name) for folder in (output, ground.corpus.parent / "out"))
    assert [reject[:4] for reject in part.rejects] == [[key(shard, index), index, "decode", "crashed"]]
    assert part.rows == [row for row in undisturbed.rows if row["sample_index"] != index]
