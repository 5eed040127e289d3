"""Gates as tables: what they let through, and what they stop."""

from typing import Any

import numpy as np
import pytest

from pipeline.qa.config import QaConfig
from pipeline.qa.gates import RUN, Gate, Gates
from pipeline.tokens.schema import Counts
from tests.qa.parts import report

FEW_CODES = np.eye(64, dtype=int)[3] * 5000 + 1


def rejecting(samples: int, rejects: int) -> dict[str, Any]:
    kept = samples - rejects
    return {"counts": Counts(samples, kept, kept, rejects), "rejects_by_reason": {"truncated": rejects}}


@pytest.mark.parametrize(
    ("changes", "config", "gates"),
    [
        ({}, {}, []),
        ({"out_of_range": 1}, {}, [Gate.RANGE]),
        ({"out_of_range": 1}, {"max_out_of_range": None}, []),
        (rejecting(100, 50), {}, []),
        (rejecting(100, 51), {}, [Gate.REJECTS]),
        (rejecting(7, 7), {}, []),  # of so few nothing can be said
        (rejecting(8, 8), {}, [Gate.REJECTS]),
        (rejecting(100, 51), {"max_shard_reject_fraction": None}, []),
        (rejecting(100, 2), {"max_shard_reject_fraction": 0.01}, [Gate.REJECTS]),
        ({"duplicate_grids": 20}, {}, []),
        ({"duplicate_grids": 21}, {}, [Gate.DUPLICATES]),
        ({"duplicate_grids": 99}, {"max_duplicate_fraction": None}, []),
        ({"constant_grids": 21}, {}, [Gate.CONSTANTS]),
        ({"constant_grids": 21}, {"max_constant_fraction": None}, []),
        ({"psnr": 11.9}, {}, [Gate.PSNR]),
        ({"psnr": 11.9}, {"min_psnr": None}, []),
        ({"psnr": None, "ssim": None}, {}, []),
        ({"histogram": FEW_CODES}, {}, [Gate.COLLAPSE]),
        ({"histogram": FEW_CODES}, {"min_entropy": None}, []),
        ({"histogram": np.zeros(64, int), **rejecting(0, 0)}, {}, []),
        ({"duplicate_grids": 99, "constant_grids": 99}, {}, [Gate.DUPLICATES, Gate.CONSTANTS]),
    ],
)
def test_gates_of_one_shard(changes: dict[str, Any], config: dict[str, Any], gates: list[Gate]) -> None:
    judge = Gates(QaConfig(**config))
    found = judge.shard(report(**changes))
    assert [finding.gate for finding in found] == gates
    assert judge.findings == found
    for finding in found:
        assert finding.where == (RUN if finding.gate is Gate.COLLAPSE else "s3://corpus/a.tar")
        assert (
            finding.value < finding.limit
            if finding.gate in (Gate.PSNR, Gate.COLLAPSE)
            else finding.value > finding.limit
        )
        assert "must be" in finding.message
        assert "qa.m" in finding.message, "the option is named"


@pytest.mark.parametrize(
    ("agreement", "floor", "accepted", "fails"),
    [
        (1.0, 0.98, 0.99, False),
        (0.98, 0.98, 0.99, False),
        (0.979, 0.98, 0.99, True),
        (0.95, 0.98, 0.94, False),  # the user took a precision that keeps fewer
        (0.93, 0.98, 0.94, True),
        (0.0, None, 0.99, False),
    ],
)
def test_golden_gate(agreement: float, floor: float | None, accepted: float, fails: bool) -> None:
    found = Gates(QaConfig(min_golden_agreement=floor)).golden("actor-3", agreement, accepted)
    assert [(finding.gate, finding.where) for finding in found] == [(Gate.GOLDEN, "actor-3")] * fails


@pytest.mark.parametrize(
    ("psnrs", "baseline", "config", "fails_at"),
    [
        ([24.0, 25.0] * 8, 24.5, {}, None),
        ([22.0, 23.0] * 8, 24.5, {}, 8),
        ([22.0, 23.0] * 8, 24.5, {"max_psnr_drop": None}, None),
        ([22.0, 23.0] * 8, 24.5, {"max_psnr_drop": 3}, None),
        ([22.0, 23.0] * 8, None, {}, None),
        ([18.0, 28.0] * 8, 24.5, {}, None),  # 1.5 below, but known to 1.3 only
        ([22.0, 23.0] * 3, 24.5, {}, None),  # too few
    ],
)
def test_drop_against_the_baseline(
    psnrs: list[float], baseline: float | None, config: dict[str, Any], fails_at: int | None
) -> None:
    judge = Gates(QaConfig(**config), baseline)
    fails = [number for number, psnr in enumerate(psnrs, 1) if judge.shard(report(f"{number}", psnr=psnr))]
    assert fails == ([fails_at] if fails_at else []), "a finding about the run is made once"
    assert all(finding.gate is Gate.PSNR_DROP for finding in judge.findings)


@pytest.mark.parametrize(("config", "outliers"), [({}, 1), ({"max_divergence": None}, 0), ({"max_divergence": 1}, 0)])
def test_divergence_gate_and_its_switch(config: dict[str, Any], outliers: int) -> None:
    judge, other = Gates(QaConfig(**config)), np.roll(np.arange(64) < 16, 20) * 400
    for number in range(12):
        judge.shard(report(f"{number}", histogram=other if number == 5 else np.full(64, 100) + number))
    assert [finding.where for finding in judge.findings] == ["s3://corpus/5.tar"] * outliers
    assert all((finding.gate, finding.value > finding.limit) == (Gate.DIVERGENCE, True) for finding in judge.findings)


@pytest.mark.parametrize(
    ("canaries", "judged", "most", "actors"),
    [(1, 0, 1, 1), (1, 0, 2, 2), (1, 0, 64, 2), (5, 4, 64, 5), (5, 4, 3, 3), (1, 1, 64, 64), (0, 0, 64, 64)],
)
def test_rest_of_the_fleet_waits_for_the_canaries(canaries: int, judged: int, most: int, actors: int) -> None:
    judge = Gates(QaConfig(canary_shards=canaries))
    for number in range(judged):
        judge.shard(report(str(number)))
    assert judge.actors(most) == actors
    assert Gates(QaConfig(canary_shards=canaries, samples_per_shard=0)).actors(most) == most, "nothing is judged"


@pytest.mark.parametrize(
    ("canaries", "judged", "running", "held"),
    [
        (1, 0, 0, False),
        (1, 0, 1, True),
        (1, 1, 5, False),
        (3, 0, 2, False),
        (3, 1, 2, True),
        (3, 3, 9, False),
        (0, 0, 0, False),
    ],
)
def test_others_wait_for_the_canaries(canaries: int, judged: int, running: int, held: bool) -> None:
    judge = Gates(QaConfig(canary_shards=canaries))
    for number in range(judged):
        judge.shard(report(str(number)))
    assert judge.holds_back(running) is held
    assert not Gates(QaConfig(canary_shards=canaries, samples_per_shard=0)).holds_back(running), "nothing is judged"
