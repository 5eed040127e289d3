"""The benchmark as a whole: on a tiny model its figures agree with each other, and name what was planted."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.bench import Bench, bench
from pipeline.bench.roofline import Stage
from pipeline.config import JobConfig
from pipeline.errors import Reject, UsageError
from pipeline.images import Prepared
from pipeline.isolation import prepare_sample
from tests.support.corpora import write_shard


def test_every_stage_is_measured(found: Bench) -> None:
    assert list(found.stages) == [stage.value for stage in Stage]
    for stage in found.stages.values():
        assert 0 < stage.rate.low <= stage.rate.median <= stage.rate.high
        assert stage.cpu_ms.low > 0
    assert sum(stage.share for stage in found.stages.values()) == pytest.approx(1.0, abs=0.1)


def test_units_agree_with_images(found: Bench) -> None:
    fetch, write = found.stages["fetch"], found.stages["write"]
    assert fetch.native.median * 1e6 / found.bytes_per_image == pytest.approx(fetch.rate.median)
    assert (fetch.unit, write.unit) == ("MB/s", "tokens/s")
    assert write.native.median == pytest.approx(64 * write.rate.median), "8 x 8 tokens"
    assert found.rows == 10, "as many as a shard has samples"


def test_choices_are_shown_side_by_side(found: Bench) -> None:
    assert list(found.decode_modes) == ["exact", "tensor", "fast"]
    assert min(found.decode_modes.values()) > 0
    assert [model.precision for model in found.models] == ["exact", "bf16", "fp16"], "TF32 is no matter of a CPU"
    assert (found.models[0].agreement, found.precision, found.decode) == (1.0, "exact", "exact")


def test_verdict_follows_from_the_figures(found: Bench) -> None:
    assert (found.device, found.limit, found.cores_per_device, found.device_memory) == ("cpu", "cores", None, None)
    assert found.fraction.low <= found.fraction.median <= found.fraction.high
    assert 0 < found.free_cores.low <= found.cores
    assert found.heaviest == max(found.stages, key=lambda name: found.stages[name].share)
    assert found.peak_memory > 50e6


def test_steps_are_counted_to_the_end(found: Bench, steps: list[tuple[str, int, int]]) -> None:
    assert [done for _, done, _ in steps] == list(range(len(steps)))
    assert {total for _, _, total in steps} == {len(steps)}
    assert steps[-1][0] == "round 2: all together"


def slow(key: str, members: Mapping[str, bytes], *more: Any, **options: Any) -> Prepared | Reject:
    """Decoding that takes 20 ms of CPU time longer."""
    end = time.thread_time() + 0.02
    while time.thread_time() < end:
        pass
    return prepare_sample(key, members, *more, **options)


def test_planted_bottleneck_is_named(job: JobConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.worker.prepare_sample", slow)
    monkeypatch.setattr("pipeline.engine.calibration.RATE_SECONDS", 0.0)
    monkeypatch.setattr("pipeline.bench.rounds.Precision", [])
    monkeypatch.setattr("pipeline.bench.rounds.decode_modes", lambda _: [])
    found = bench(
        job.model_copy(update={"qa": job.qa.model_copy(update={"samples_per_shard": 0})}), seconds=0.05, rounds=1
    )
    assert "inspect" not in found.stages, "QA is off"
    assert found.heaviest == "decode"
    assert found.stages["decode"].cpu_ms.median >= 20
    assert found.end_to_end_cpu_ms.median >= 20


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"jpg": b"no image at all"}, "no image"),
        ({"txt": b"only a caption"}, "no image"),
    ],
)
def test_shards_that_cannot_be_measured(tmp_path: Path, job: JobConfig, members: dict[str, bytes], says: str) -> None:
    write_shard(tmp_path / "bad.tar", {"a": members})
    with pytest.raises(UsageError, match=says):
        bench(job.model_copy(update={"shards": (str(tmp_path),)}), seconds=0.05, rounds=1)


def test_missing_shards(tmp_path: Path, job: JobConfig) -> None:
    with pytest.raises(UsageError, match="nothing to measure"):
        bench(job.model_copy(update={"shards": (str(tmp_path / "{0..1}.tar"),)}), seconds=0.05, rounds=1)
