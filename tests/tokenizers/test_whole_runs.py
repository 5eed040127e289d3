"""Every family through a whole run: tokens are the library's own, the store is right, and pictures come back."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pipeline.decoding import DecodeConfig, decode
from pipeline.errors import ModelError
from pipeline.exports.source import open_source
from pipeline.images import ImageConfig, prepare
from pipeline.output import Output
from pipeline.storage import Storage
from pipeline.verify import verify
from tests.support.corpora import jpeg, write_shard
from tests.support.families import FAMILIES, FORMULAS, transformers_vq
from tests.support.whole_runs import whole_run

COUNT = 5
CODES = {"ChameleonVQVAE": 64, "Emu3VQVAE": 70_000, "JanusVQVAE": 64, "cosmos": 64_000, "magvit": 262_144}
WITHOUT_QA = {"qa.samples_per_shard": 0}

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
Made = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shard(folder / "0.tar", {f"k{i}": {"jpg": jpeg(i, 40 + i, 36)} for i in range(COUNT)})
    return folder


@pytest.fixture(scope="module", params=list(FAMILIES))
def run(request: pytest.FixtureRequest, made_once: Made, shards: Path) -> tuple[str, Path, Output]:
    """One run of a family: its name, its model, its output."""
    name = request.param
    model = made_once(f"model of {name}", FAMILIES[name])
    settings = {"model.allow_torchscript": name in FORMULAS} | (WITHOUT_QA if name == "ChameleonVQVAE" else {})
    folder = made_once(f"run of {name}", lambda folder: check_golden(*whole_run(model, shards, folder, **settings)))
    return name, model, Output(Storage(), str(folder))


def check_golden(_: Output, golden: float | None) -> None:
    assert golden in (1.0, None)


def pixels() -> torch.Tensor:
    """What the run tokenizes, [COUNT, 3, 32, 32] in [-1, 1]."""
    images = [prepare(jpeg(i, 40 + i, 36), ImageConfig(size=32)).views[0].pixels for i in range(COUNT)]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def own_indices(name: str, model: Path) -> torch.Tensor:
    """The library's indices; a program's own, or the signs of its latents written as bits: [COUNT, 8, 8]."""
    if name in FORMULAS:
        given = torch.jit.load(model / "encoder.jit")(pixels())
        return given[0].long() if name == "cosmos" else sum((given[:, i] > 0).long() * 2**i for i in range(18))
    vq = transformers_vq(name)
    if name == "Emu3VQVAE":
        return torch.stack(vq.encode(pixels(), image_sizes=torch.tensor([[32, 32]] * COUNT)).image_tokens)
    return vq.encode(pixels()).image_tokens.view(COUNT, 8, 8)


def test_tokens_are_the_librarys_own(run: tuple[str, Path, Output]) -> None:
    name, model, output = run
    (part,) = Path(output.url.removeprefix("file://"), "tokens").iterdir()
    table = pq.read_table(part)
    kind = pa.uint32() if CODES[name] > 65_536 else pa.uint16()
    assert table.schema.field("tokens").type == pa.list_(kind, 64)
    found = np.stack(table["tokens"].to_numpy()).reshape(COUNT, 8, 8)
    expected = own_indices(name, model).numpy()
    assert len(np.unique(expected)) > 20
    np.testing.assert_array_equal(found, expected)


def test_store_is_whole_and_says_what_made_it(run: tuple[str, Path, Output]) -> None:
    name, _, output = run
    result = verify(Storage(), output.url)
    assert result.ok, result.findings
    job = output.job()
    assert job is not None
    assert job["spec"]["codebook_size"] == CODES[name]
    assert job["identity"]["model"]["family"] in (name, "ScriptedTokenizer")
    card = Storage().read(f"{output.url}/README.md").decode()
    assert "load_tokenizer" in card


def test_pictures_come_back(run: tuple[str, Path, Output], tmp_path: Path) -> None:
    name, _, output = run
    source = open_source(Storage(), output.url)
    config = DecodeConfig(to=str(tmp_path), sample=2, allow_torchscript=name in FORMULAS)
    if name == "ChameleonVQVAE":
        with pytest.raises(ModelError, match="has no decoder"):
            decode(source, config)
        return
    assert decode(source, config) == 2
    for path in tmp_path.iterdir():
        with Image.open(path) as picture:
            assert picture.size == (32, 32)
    evidence = pq.read_table(next(Path(output.url.removeprefix("file://"), "qa").iterdir()))
    assert evidence.num_rows > 0


def test_model_without_a_decoder_is_refused_where_qa_needs_one(made_once: Made, shards: Path, tmp_path: Path) -> None:
    model = made_once("model of ChameleonVQVAE", FAMILIES["ChameleonVQVAE"])
    with pytest.raises(ModelError, match=r"has no decoder.* set qa\.samples_per_shard=0"):
        whole_run(model, shards, tmp_path)


def test_leave_to_run_a_program_is_not_taken_from_the_store(made_once: Made, shards: Path, tmp_path: Path) -> None:
    model = made_once("model of cosmos", FAMILIES["cosmos"])
    folder = made_once(
        "run of cosmos", lambda folder: whole_run(model, shards, folder, **{"model.allow_torchscript": True})
    )
    source = open_source(Storage(), str(folder))
    assert source.job["config"]["model"]["allow_torchscript"] is True
    with pytest.raises(ModelError, match="is a TorchScript model, a program"):
        decode(source, DecodeConfig(to=str(tmp_path), sample=1))
