"""The gates of a run go on from the evidence that is there."""

import random
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UsageError
from pipeline.qa import history
from pipeline.qa.config import QaConfig
from pipeline.qa.evidence import Evidence, evidence_url, mean_psnr, publish_evidence
from pipeline.qa.gates import RUN, Gate
from pipeline.qa.history import gates_of
from pipeline.shards.manifest import shard_id
from pipeline.storage import Storage
from tests.qa.parts import report


def leave(output: Path, shards: int, **changes: Any) -> list[str]:
    """Evidence of some shards in OUTPUT; returns their ids."""
    output.mkdir()
    names = [shard_id(f"s3://corpus/{number}.tar") for number in range(shards)]
    for number, name in enumerate(names):
        shown = {"id": name, "url": f"s3://corpus/{number}.tar"}
        publish_evidence(Storage(), str(output), Evidence(report(**changes, shard=shown), []), output)
    return names


def test_shards_that_are_there_count_as_canaries_and_are_judged_again(tmp_path: Path) -> None:
    names = leave(tmp_path / "out", 3, duplicate_grids=21)
    gates = gates_of(Storage(), str(tmp_path / "out"), QaConfig(canary_shards=3), names[:2], None)
    assert (gates.judged, gates.actors(64)) == (2, 3)
    assert [finding.where for finding in gates.findings] == [f"s3://corpus/{name}.tar" for name in range(2)]
    opened = QaConfig(canary_shards=3, max_duplicate_fraction=None)
    assert gates_of(Storage(), str(tmp_path / "out"), opened, names, None).findings == []


def test_evidence_that_is_missing_or_damaged_is_no_obstacle(tmp_path: Path) -> None:
    names = leave(tmp_path / "out", 3)
    (tmp_path / "out" / "qa" / f"{names[0]}.parquet").unlink()
    (tmp_path / "out" / "qa" / f"{names[1]}.parquet").write_bytes(b"PAR1 not really")
    assert gates_of(Storage(), str(tmp_path / "out"), QaConfig(), names, None).judged == 1
    assert gates_of(Storage(), str(tmp_path / "out"), QaConfig(samples_per_shard=0), names, None).judged == 0


def test_no_damage_to_evidence_ends_a_run(tmp_path: Path) -> None:
    """Wherever a bit is flipped or the file is cut: it is no evidence, or the gates can judge what it says."""
    output, lots = str(tmp_path / "out"), random.Random(0)
    [name] = leave(tmp_path / "out", 1, histogram=range(64))
    path = tmp_path / "out" / "qa" / f"{name}.parquet"
    good = path.read_bytes()
    footer = len(good) - 8 - int.from_bytes(good[-8:-4], "little")
    damaged = [good[:at] for at in range(0, len(good), 19)] + [good[:footer] + bytes(100) + good[footer + 100 :]]
    flips = [(at, 1 << lots.randrange(8)) for at in range(footer, len(good), 2)]
    damaged += [good[:at] + bytes([good[at] ^ bit]) + good[at + 1 :] for at, bit in flips]
    judged = 0
    for data in damaged:
        path.write_bytes(data)
        judged += gates_of(Storage(), output, QaConfig(), [name], None).judged
    assert 0 < judged < len(damaged) / 2


def test_of_many_parts_some_are_read_and_the_accused_always(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names, read = sorted(leave(tmp_path / "out", 9)), []
    monkeypatch.setattr(history, "READ_AT_MOST", 3)
    monkeypatch.setattr(history, "read_report", lambda _, url: read.append(url) or report())
    accused = next(f"s3://corpus/{n}.tar" for n in range(9) if shard_id(f"s3://corpus/{n}.tar") == names[1])
    summary = {"gates": [{"where": accused}, {"where": RUN}]}
    gates_of(Storage(), str(tmp_path / "out"), QaConfig(), names, summary)
    assert sorted(read) == [evidence_url(str(tmp_path / "out"), names[number]) for number in (0, 1, 3, 6)]


def test_run_is_held_against_its_baseline(tmp_path: Path) -> None:
    leave(tmp_path / "earlier", 4, psnr=26.0)
    names = leave(tmp_path / "out", 9, psnr=24.0)
    config = QaConfig(baseline=str(tmp_path / "earlier"))
    [finding] = gates_of(Storage(), str(tmp_path / "out"), config, names, None).findings
    assert (finding.gate, finding.where, finding.value) == (Gate.PSNR_DROP, RUN, pytest.approx(2.0))
    with pytest.raises(UsageError, match=r"qa\.baseline must be an OUTPUT with QA evidence"):
        gates_of(Storage(), str(tmp_path / "out"), QaConfig(baseline=str(tmp_path / "none")), [], None)


def test_baseline_with_damaged_files(tmp_path: Path) -> None:
    names = leave(tmp_path / "earlier", 3, psnr=26.0)
    for name in names[:2]:
        (tmp_path / "earlier" / "qa" / f"{name}.parquet").write_bytes(b"PAR1 not really")
    (tmp_path / "earlier" / "summary.json").write_bytes(b'{"qa": {"ps')
    assert mean_psnr(Storage(), str(tmp_path / "earlier")) == 26.0
