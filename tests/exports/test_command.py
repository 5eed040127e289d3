"""`tokenmill export` as a user types it, and what it sends to the Hub."""

from pathlib import Path

import pytest

from tests.support.commands import last_json, tokenmill
from tests.support.hub import REPO, hub
from tests.support.token_runs import make_run

pytestmark = pytest.mark.system


def test_upload(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    command = ["export", tmp_path / "run", "--format", "hf", "--to", tmp_path / "to", "--workers", 1, "--json"]
    with hub() as here:
        environment = {"HF_ENDPOINT": here.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_nobody"}
        result = tokenmill(*command, "--upload", REPO, **environment)
        assert result.returncode == 0, result.stderr
        assert last_json(result)["rows"] == 17
        files = [path for path in (tmp_path / "to").rglob("*.*") if "_tokenmill" not in path.parts]
        sent = {path.relative_to(tmp_path / "to").as_posix(): path.read_bytes() for path in files}
        assert here.files == sent
        assert sorted(sent) == ["README.md", "data/train-00000-of-00001.parquet"]
        assert here.requests["commit"] == here.requests["create"] == 1
        refused = tokenmill(*command, "--upload", "no such/name", **environment)
        assert (refused.returncode, "Traceback" in refused.stderr) == (2, False)
        assert "the export itself is complete" in refused.stderr
    elsewhere = tokenmill(*command[:2], "--format", "bin", "--to", tmp_path / "bin", "--upload", REPO)
    assert (elsewhere.returncode, "--format hf" in elsewhere.stderr) == (2, True)
