"""SIGTERM: running shards finish within the notice or are dropped; the exit code says so, and the next run goes on."""

import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.chaos.ground import FULL, LONGEST, Ground
from tests.support.commands import wait_until
from tests.support.faults import ALWAYS, Fault

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(2 * LONGEST)]
LEAVING = 15  # seconds that a driver may take beside the notice: accounts, actors, Ray
SLOW = 5.0  # seconds that each shard takes at least


@pytest.mark.parametrize(
    ("notice", "finishes"), [(0, False), (1, False), (30, True)] if FULL else [(1, False), (30, True)]
)
def test_sigterm_with_notice(
    ground: Ground, tmp_path: Path, fired: Counter[str], notice: float, finishes: bool
) -> None:
    ground.faults.plan(Fault(point="opened", action="sleep", amount=SLOW, times=ALWAYS))
    with ground.watched(tmp_path):
        process = ground.start(tmp_path, f"limits.drain_seconds={notice}")
        wait_until(lambda: bool(ground.faults.fired()), process)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=LONGEST)
        took = time.monotonic() - began
        fired[f"SIGTERM with {notice} s of notice"] += 1
        assert process.returncode == 4, said
        assert took < min(notice, SLOW + 5) + LEAVING
        left = len(list(tmp_path.glob("tokens/*.parquet")))
        assert (left > 0) == finishes, f"{left} parts after {took:.1f} s: {said}"
        ground.faults.plan()
        assert ground.run(tmp_path).returncode == 0
