"""SIGTERM: running shards finish within the notice or are dropped; the exit code says so, and the next run goes on."""

import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.chaos.ground import FULL, LONGEST, ONE_ACTOR, Ground
from tests.support.commands import wait_until
from tests.support.faults import ALWAYS, Fault

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(2 * LONGEST)]
LEAVING = 15  # seconds that a driver may take beside the notice: accounts, actors, Ray
SLOW = 2.0  # seconds that each shard takes at least
NOTICES = [(0, False), (1, False), (30, True), (0.5, False), (30, True)] if FULL else [(1, False), (30, True)]


def test_sigterm_with_notice(ground: Ground, tmp_path: Path, fired: Counter[str]) -> None:
    """Again and again on one output: with too little notice nothing is finished, with enough what runs is."""
    ground.faults.plan(Fault(point="opened", action="sleep", amount=SLOW, times=ALWAYS))
    with ground.watched(tmp_path):
        for notice, finishes in NOTICES:
            before, asleep = count_parts(tmp_path), ground.faults.fired().total()
            process = ground.start(tmp_path, ONE_ACTOR, f"limits.drain_seconds={notice}")
            wait_until(lambda asleep=asleep: ground.faults.fired().total() > asleep, process)
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            said, _ = process.communicate(timeout=LONGEST)
            assert process.returncode == 4, said
            assert time.monotonic() - began < min(notice, 2 * SLOW) + LEAVING
            assert (count_parts(tmp_path) > before) == finishes, said
            fired[f"SIGTERM with {notice} s of notice"] += 1
        ground.faults.plan()
        assert ground.run(tmp_path, ONE_ACTOR).returncode == 0


def count_parts(output: Path) -> int:
    return len(list(output.glob("tokens/*.parquet")))
