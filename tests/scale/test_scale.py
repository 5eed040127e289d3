"""Planning, running and resuming stay cheap as the number of shards grows. `make scale` does 100,000 of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import ROOT, environment

pytestmark = pytest.mark.system
SHARDS = int(os.environ.get("SCALE_SHARDS", "3000"))


@pytest.mark.timeout(1800)
def test_driver_with_many_shards(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.scale.run", str(SHARDS), str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.strip().splitlines()[-1])
    print(figures)
    assert (figures["exit_code"], figures["committed"], figures["left"]) == (0, SHARDS, 0)
    assert figures["plan_seconds"] <= 30
    assert figures["resume_seconds"] <= 60
    assert figures["driver_mib"] <= 2048
    assert figures["ms_per_shard_last_third"] <= 2 * figures["ms_per_shard_first_third"]
