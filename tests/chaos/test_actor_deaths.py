"""SIGKILL of actors: at random times from outside, and at every named point of an attempt from inside."""

import random
from collections import Counter
from pathlib import Path

import pytest

from tests.chaos.ground import FULL, LONGEST, STRETCH, Ground
from tests.chaos.poison import SHARDS
from tests.support.faults import POINTS, Fault

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(LONGEST + 60)]
SEEDS, KILLS = (range(20), 5) if FULL else (range(1), 3)
PATIENT = "limits.max_attempts=50"  # who is killed alone again and again is not to blame here


@pytest.mark.parametrize("seed", SEEDS)
def test_actors_killed_at_random_times(ground: Ground, tmp_path: Path, fired: Counter[str], seed: int) -> None:
    chance = random.Random(seed)
    ground.faults.plan(stretch=STRETCH)
    with ground.watched(tmp_path):
        process = ground.start(tmp_path, PATIENT)
        for _ in range(KILLS):
            ground.kill_busy_actor(process, chance)
            fired["SIGKILL of an actor at work"] += 1
        said, _ = process.communicate(timeout=LONGEST)
        assert process.returncode == 0, said
    assert said.count("is replaced") >= KILLS


@pytest.mark.parametrize("points", [POINTS, *((point,) for point in POINTS if FULL)], ids="+".join)
def test_actor_killed_at_named_points(ground: Ground, tmp_path: Path, fired: Counter[str], points: tuple[str]) -> None:
    kills = [Fault(point=point, action="kill", shard=f"{number:05d}-*") for number, point in enumerate(points)]
    ground.faults.plan(*kills)
    with ground.watched(tmp_path):
        result = ground.run(tmp_path)
        fired.update(ground.faults.fired())
        assert result.returncode == 0, result.stderr
    assert fired == {f"kill at {point}": 1 for point in points}


if FULL:

    @pytest.mark.parametrize("seed", range(3))
    def test_storm_of_kills_at_named_points(ground: Ground, tmp_path: Path, fired: Counter[str], seed: int) -> None:
        places = [(point, shard) for point in POINTS for shard in range(SHARDS)]
        storm = random.Random(seed).sample(places, 12)
        ground.faults.plan(*(Fault(point=point, action="kill", shard=f"{shard:05d}-*") for point, shard in storm))
        with ground.watched(tmp_path):
            result = ground.run(tmp_path, PATIENT)
            fired.update(ground.faults.fired())
            assert result.returncode == 0, result.stderr
        assert fired.total() == len(storm)
