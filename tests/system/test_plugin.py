"""A tokenizer of a package from outside the repository, through the command line and Ray's actors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from tests.support.commands import ROOT, tokenmill
from tests.support.corpora import sample, write_shard

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The package, installed into a folder of its own; the environment in which it is found."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(folder), str(ROOT / "tests" / "support" / "plugin")], check=True, timeout=300)
    return {"PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps({"_class_name": "BrightnessTokenizer", "patch": 8}))
    save_file({"levels": torch.linspace(-1, 1, 300)}, folder / "levels.safetensors")
    return folder


def test_run_with_a_tokenizer_from_outside(installed: dict[str, str], model: Path, tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", {f"k{i}": sample(0, i) for i in range(8)})
    where = ["--shards", tmp_path / "0.tar", "--model", model, "--output", tmp_path / "out"]
    result = tokenmill("run", *where, "--set", "image.size=32", **installed)
    assert result.returncode == 0, result.stderr
    tokens = pq.read_table(next((tmp_path / "out" / "tokens").iterdir()))["tokens"]
    assert len(np.unique(np.stack(tokens.to_numpy()))) > 20
    job = json.loads((tmp_path / "out" / "job.json").read_text())
    assert job["identity"]["model"] == {"family": "BrightnessTokenizer", "patch": 8}
    decoded = tokenmill("decode", tmp_path / "out", "--to", tmp_path / "pictures", "--sample", 2, **installed)
    assert decoded.returncode == 0, decoded.stderr
    assert len(list((tmp_path / "pictures").iterdir())) == 2
    assert tokenmill("verify", tmp_path / "out").returncode == 0
    refused = tokenmill("decode", tmp_path / "out", "--to", tmp_path / "none", "--sample", 2)
    assert refused.returncode == 2
    assert "got 'BrightnessTokenizer'" in refused.stderr
