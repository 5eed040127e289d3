"""`tokenmill submit --slurm` on a real Slurm: one node, or two by SLURM_NODES=2 (`make slurm`)."""

import json
import os
from pathlib import Path

import pytest

from tests.infra.slurm import slurm
from tests.support.commands import ROOT, parts, tokenmill

pytestmark = pytest.mark.system
NODES = int(os.environ.get("SLURM_NODES", "1"))


def test_job_runs_on_the_nodes_of_slurm_and_leaves_no_token(tmp_path: Path, corpus: Path, tiny_model: Path) -> None:
    job = f"shards: ['{corpus}']\nmodel: {tiny_model}\noutput: {tmp_path}/out\nimage: {{size: 32}}\n"
    (tmp_path / "job.yaml").write_text(job + f"cluster: {{actors: {NODES}, cpus_per_actor: 1}}\n")
    (tmp_path / "slurm").mkdir()
    path = f"{ROOT / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    with slurm(tmp_path / "slurm", NODES) as environment:
        flags = ["--slurm", "--wait", "--sbatch", f"nodes={NODES}"]
        folder = ["--folder", tmp_path / "job"]
        result = tokenmill("submit", tmp_path / "job.yaml", *flags, *folder, **environment, PATH=path)
    assert result.returncode == 0, result.stdout + result.stderr
    [log] = (tmp_path / "job").glob("slurm-*.log")
    lines = log.read_text().splitlines()
    [summary] = [json.loads(line) for line in lines if line.startswith('{"shards"')]
    assert summary["shards"]["committed"] == 4 == len(parts(tmp_path / "out"))
    assert sum("Ray runtime started" in line for line in lines) == NODES
    assert not list((tmp_path / "job").glob("token-*"))
    assert "RAY_AUTH_TOKEN=" not in (tmp_path / "job" / "run.sbatch").read_text()
