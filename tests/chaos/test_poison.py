"""Samples that kill, hang or devour whatever decodes them: each becomes a reject by name, all others become rows."""

from collections import Counter
from pathlib import Path

import pytest

from tests.chaos.ground import FULL, LONGEST, Ground, undisturbed_run
from tests.support.checker import Part
from tests.support.corpora import sample, write_shard
from tests.support.faults import ALWAYS, Fault

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(2 * LONGEST)]
SHARDS, SAMPLES = 6, 40
POISON = {"segv": (3, 5), "hang": (4, 20), "devour": (5, 39), "freeze": (2, 0)}  # action -> shard, sample
EARLY = {"segv early": (0, 3), "hang early": (0, 4)}  # among the images that calibrate the run
TOGETHER = [("segv",), ("hang",), ("devour",), ("freeze",)] if FULL else []
SETTINGS = [
    "limits.max_attempts=1",  # whoever is charged for a neighbour's death is given up, and the run ends with 3
    "limits.stall_seconds=8",
    "limits.sample_seconds=3",
    f"limits.sample_bytes={512 << 20}",
]


def faults(kinds: tuple[str, ...]) -> list[Fault]:
    """Each strikes whatever process decodes its sample, again and again."""
    return [
        Fault(point="sample", action=kind.split()[0], marker=f"poison: {kind};", times=ALWAYS, amount=1 << 30)
        for kind in kinds
    ]


@pytest.fixture(scope="module")
def poisoned(undisturbed: Ground, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """A corpus whose poison is a comment inside the JPEGs: harmless until faults are planned."""
    folder = tmp_path_factory.mktemp("poison")
    (folder / "in").mkdir()
    places = {place: kind for kind, place in (POISON | EARLY).items()}
    for shard in range(SHARDS):
        samples = {f"{shard}-{index:03d}": sample(shard, index) for index in range(SAMPLES)}
        for (at, index), kind in places.items():
            if at == shard:
                members = samples[f"{shard}-{index:03d}"]
                members["jpg"] = with_comment(members["jpg"], f"poison: {kind};".encode())
        write_shard(folder / "in" / f"{shard:05d}.tar", samples)
    return undisturbed_run(undisturbed.cluster, undisturbed.faults, folder / "in", undisturbed.model, folder / "out")


def with_comment(jpeg: bytes, text: bytes) -> bytes:
    """The JPEG with a comment segment after its start marker."""
    return jpeg[:2] + b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text + jpeg[2:]


@pytest.mark.parametrize(
    "kinds", [("segv", "hang", "devour"), *TOGETHER, *((kind,) for kind in EARLY if FULL)], ids="+".join
)
def test_poison_samples(poisoned: Ground, tmp_path: Path, fired: Counter[str], kinds: tuple[str, ...]) -> None:
    poisoned.calm()
    poisoned.faults.plan(*faults(kinds))
    with poisoned.watched(tmp_path, differ=len(kinds)):
        result = poisoned.run(tmp_path, *SETTINGS)
        fired.update(poisoned.faults.fired())
        assert result.returncode == 0, result.stderr
    for kind in kinds:
        assert fired[f"{kind.split()[0]} at sample"], f"{kind} never happened"
        check_reject(poisoned, tmp_path, *(POISON | EARLY)[kind])


def check_reject(poisoned: Ground, output: Path, shard: int, index: int) -> None:
    """The poison is a reject; the shard's other samples are the rows of the undisturbed run."""
    name = next(name for name in poisoned.undisturbed if name.startswith(f"{shard:05d}-"))
    part, undisturbed = (Part.read(folder / "tokens" / name) for folder in (output, poisoned.corpus.parent / "out"))
    assert [reject[:4] for reject in part.rejects] == [[f"{shard}-{index:03d}", index, "decode", "crashed"]]
    assert part.rows == [row for row in undisturbed.rows if row["sample_index"] != index]
