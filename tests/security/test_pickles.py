"""Nothing that can run code is ever loaded: no pickled member, no pickled weights, no code that lies beside a model."""

import ast
import json
import pickle
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from pipeline.config import JobConfig
from pipeline.encoding import ModelConfig
from pipeline.errors import ModelError
from pipeline.model import VQModel, weights_hash
from pipeline.shards.manifest import freeze
from pipeline.storage import Storage
from pipeline.tokenize_shard import tokenize_shard
from pipeline.tokens.schema import ColumnsConfig
from pipeline.worker import Worker
from tests.security.canary import Canary, pickled
from tests.support.commands import ROOT
from tests.support.corpora import sample, write_shard
from tests.support.lines import production_line

# What WebDataset's and torch's decoders would load, and what else is loaded by somebody.
PICKLED = ["pkl", "pickle", "pyd", "pth", "pt", "bin", "npy", "npz", "ckpt", "joblib", "dill", "cls", "json", "txt"]
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """The file that a canary touches."""
    return tmp_path / "fired"


def test_canary_fires(mark: Path, tmp_path: Path) -> None:
    pickle.loads(pickled(mark))
    assert mark.exists()
    mark.unlink()
    torch.save(Canary(mark), tmp_path / "weights.bin")
    torch.load(tmp_path / "weights.bin", weights_only=False)
    assert mark.exists()


def test_pickled_members(mark: Path, tmp_path: Path, tiny_model: Path) -> None:
    samples = {f"a{index}": {**sample(0, index), kind: pickled(mark)} for index, kind in enumerate(PICKLED)}
    samples["b"] = {"jpg": pickled(mark)}
    shard = write_shard(tmp_path / "0.tar", samples)
    with production_line(tiny_model, f"{tmp_path}/out") as line:
        columns = ColumnsConfig(caption="pkl", meta="pickle")
        report = tokenize_shard(freeze(Storage(), [str(shard)])[0], replace(line, columns=columns))
    assert (report.counts.tokenized, report.counts.rejects) == (len(PICKLED), 1)
    part = pq.read_table(next((tmp_path / "out" / "tokens").iterdir()))
    assert "touch" in part["caption"][0].as_py(), "the member was read: as text"
    assert not mark.exists()


@pytest.mark.parametrize(
    "name", [WEIGHTS, "diffusion_pytorch_model.bin", "pytorch_model.bin", "vq.pt", "vq.pth", "vq.ckpt", "vq.pkl"]
)
def test_pickled_weights(name: str, mark: Path, tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    torch.save(Canary(mark), tmp_path / name)
    with pytest.raises(ModelError, match=r"must be safetensors|cannot be read|must hold"):
        VQModel.from_pretrained(tmp_path)
    assert not mark.exists()


def test_pickled_weights_behind_an_index(mark: Path, tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    torch.save(Canary(mark), tmp_path / "part.bin")
    (tmp_path / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"a": "part.bin"}}))
    with pytest.raises(ModelError, match=r"must name safetensors files of its own folder, got 'part\.bin'"):
        VQModel.from_pretrained(tmp_path)
    assert not mark.exists()


def test_pickled_weights_beside_good_ones(mark: Path, tmp_path: Path, tiny_model: Path) -> None:
    for file in tiny_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(Canary(mark), tmp_path / "diffusion_pytorch_model.bin")
    assert weights_hash(VQModel.from_pretrained(tmp_path)) == weights_hash(VQModel.from_pretrained(tiny_model))
    assert not mark.exists()


@pytest.mark.parametrize("key", ["auto_map", "_class_name", "custom_pipelines", "quantization_config"])
def test_code_beside_a_model(
    key: str, mark: Path, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((tiny_model / "config.json").read_text())
    value = {"AutoModel": "modeling.VQModel"} if key != "_class_name" else "modeling.VQModel"
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    (tmp_path / WEIGHTS).write_bytes((tiny_model / WEIGHTS).read_bytes())
    for name in ("modeling.py", "__init__.py", "sitecustomize.py"):
        (tmp_path / name).write_text(f"open({str(mark)!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    with suppress(ModelError):
        VQModel.from_pretrained(tmp_path)
    assert not mark.exists()


def test_pinned_weights(tiny_model: Path) -> None:
    pin = weights_hash(VQModel.from_pretrained(tiny_model))
    for sha256 in (pin, pin[:-1] + ("0" if pin[-1] != "0" else "1")):
        worker = Worker(JobConfig(model=ModelConfig(path=str(tiny_model), sha256=sha256)), 1, "cpu")
        if sha256 == pin:
            assert worker.load().weights == pin
        else:
            with pytest.raises(ModelError, match=f"weights' hash must be {sha256}, got {pin}"):
                worker.load()


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


LOADERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "runpy", "imp"}
CALLS = {
    *("eval", "exec", "compile", "__import__", "importlib.import_module"),
    *("torch.load", "torch.jit.load", "np.load", "numpy.load", "yaml.load", "yaml.unsafe_load", "pd.read_pickle"),
    *("os.system", "os.popen", "os.execv", "tarfile.open", "archive.extractall", "archive.extract", "wds.WebDataset"),
}


# Programs that the user asks for: a network by path and by hash, which is checked first; a tokenizer by explicit leave.
# `tokenmill convert` alone, never a job, reads checkpoints: tensors only.
ASKED_FOR = {
    ("pipeline/qa/networks.py", "torch.jit.load"),
    ("pipeline/tokenizers/scripted.py", "torch.jit.load"),
    ("pipeline/tokenizers/pickled.py", "torch.load"),
}


@pytest.mark.parametrize("path", sorted([*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("jobs/**/*.py")]), ids=name_of)
def test_nothing_that_runs_data_is_called(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name.split(".")[0] for alias in node.names}
            assert not ({getattr(node, "module", None)} | names) & LOADERS, ast.unparse(node)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in CALLS or (name_of(path), called) in ASKED_FOR, ast.unparse(node)
            assert called.rpartition(".")[2] not in ("extractall", "extract", "xdecode"), ast.unparse(node)
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert options.get("shell", "False") == options.get("allow_pickle", "False") == "False", ast.unparse(node)
            assert options.get("trust_remote_code", "False") == "False", ast.unparse(node)
            assert called != "torch.load" or options.get("weights_only") == "True", ast.unparse(node)


def test_jobs_read_no_checkpoints() -> None:
    """Only the conversion imports what opens pickles."""
    users = {
        name_of(path)
        for path in [*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("jobs/**/*.py")]
        if "pipeline.tokenizers.pickled" in path.read_text() or "pipeline.tokenizers.convert" in path.read_text()
    }
    assert users == {"pipeline/tokenizers/convert.py", "jobs/convert.py"}
