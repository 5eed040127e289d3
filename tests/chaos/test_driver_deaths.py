"""SIGKILL of the driver, at random times and at every point of claiming and finalising; the same command goes on."""

import random
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.chaos.ground import FULL, LONGEST, ONE_ACTOR, STRETCH, Ground, pause
from tests.chaos.poison import SHARDS
from tests.support.commands import wait_until
from tests.support.faults import ALWAYS, FINALISATION, Fault

pytestmark = pytest.mark.chaos
CHAINS, KILLS = (range(7), 3) if FULL else (range(1), 2)
LATEST = SHARDS - 3  # parts: the run then goes on for longer than the last pause before the kill
POINTS = FINALISATION if FULL else ("after claim", "before summary.json")


def count_parts(output: Path) -> int:
    return len(list(output.glob("tokens/*.parquet")))


@pytest.mark.timeout(5 * LONGEST)
@pytest.mark.parametrize("seed", CHAINS)
def test_driver_killed_at_random_times(ground: Ground, tmp_path: Path, fired: Counter[str], seed: int) -> None:
    chance = random.Random(seed)
    ground.faults.plan(stretch=STRETCH)
    with ground.watched(tmp_path):
        for _ in range(KILLS):
            process = ground.start(tmp_path)
            wanted = chance.randint(min(count_parts(tmp_path), LATEST), LATEST)
            wait_until(lambda wanted=wanted: count_parts(tmp_path) >= wanted, process)
            pause(process, chance.uniform(0, 0.5 if wanted else 6.0))  # before the first part lies the start, too
            process.kill()
            process.communicate(timeout=LONGEST)
            assert process.returncode == -signal.SIGKILL
            fired["SIGKILL of the driver"] += 1
        survived = {path.stem for path in tmp_path.glob("tokens/*.parquet")}
        ground.faults.plan(Fault(point="opened", action="sleep", times=ALWAYS))  # only to see which shards are done
        result = ground.run(tmp_path)
        assert result.returncode == 0, result.stderr
    assert not survived & ground.faults.shards(), "I5: a committed shard was done again"
    assert (tmp_path / "_SUCCESS").exists()


@pytest.mark.timeout(len(POINTS) * LONGEST)
def test_driver_killed_at_points_of_finalisation(ground: Ground, tmp_path: Path, fired: Counter[str]) -> None:
    ground.faults.plan(*(Fault(point=point, action="kill") for point in POINTS))
    with ground.watched(tmp_path):
        codes = [ground.run(tmp_path, ONE_ACTOR).returncode for _ in POINTS]
        fired.update(ground.faults.fired())
        assert codes == [-signal.SIGKILL] * len(POINTS)
        assert ground.run(tmp_path, ONE_ACTOR).returncode == 0
    assert fired == {f"kill at {point}": 1 for point in POINTS}
    assert (tmp_path / "_SUCCESS").exists()
