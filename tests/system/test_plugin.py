"""A tokenizer of a package from outside the repository, through the command line and Ray's actors."""

import json
import os
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from pipeline.encoding import ModelConfig
from pipeline.errors import ModelError
from pipeline.storage import Storage
from pipeline.tokenizers import load_tokenizer
from pipeline.tokenizers.families import GROUP
from pipeline.verify import verify
from tests.support.commands import ROOT, tokenmill
from tests.support.corpora import sample, write_shard

pytestmark = pytest.mark.system
PLUGIN = ROOT / "tests" / "support" / "plugin"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The package, laid into a folder as pip would; the environment in which it is found."""
    folder = tmp_path_factory.mktemp("site")
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    shutil.copy(PLUGIN / "tokenmill_brightness.py", folder)
    about = folder / f"tokenmill_brightness-{project['version']}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    entries = "\n".join(f"{name} = {target}" for name, target in project["entry-points"][GROUP].items())
    (about / "entry_points.txt").write_text(f"[{GROUP}]\n{entries}\n")
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
    assert verify(Storage(), str(tmp_path / "out")).ok
    with pytest.raises(ModelError, match="got 'BrightnessTokenizer'"):  # here the package is not installed
        load_tokenizer(ModelConfig(path=str(model)))
