"""The dataset card: what it says is so, and its code runs."""

import re
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from huggingface_hub import DatasetCard

from pipeline.card import dataset_card, sources_of
from pipeline.output import Output
from pipeline.storage import Storage
from pipeline.tokens.schema import TokenSpec
from tests.support.token_runs import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """2 views of each of 17 samples, as if made by the tiny model."""
    folder = tmp_path_factory.mktemp("run")
    model = {"path": str(tiny_model.parent), "subfolder": tiny_model.name}
    make_run(folder, (10, 7), views=2, spec=TokenSpec(64, 8, 8), model=model)
    return folder


def test_card_is_one_to_the_hub_and_true(run: Path, tmp_path: Path) -> None:
    card = DatasetCard.load(run / "README.md")
    assert card.data.license == "unknown"
    assert card.data.size_categories == ["n<1K"]
    data = datasets.load_dataset(str(run), split="train", cache_dir=str(tmp_path))
    declared = datasets.Features._from_yaml_list(card.data.dataset_info["features"])
    assert declared == data.features
    assert declared == datasets.Features.from_arrow_schema(datasets.load_dataset(
        "parquet", data_files=str(run / "tokens" / "*.parquet"), split="train", cache_dir=str(tmp_path)
    ).data.schema)  # fmt: skip
    assert f"{data.num_rows} rows of 8 x 8 tokens (codes 0 to 63)" in card.text
    assert "| sources | `s3://corpus` (2) |" in card.text
    job = Output(Storage(), str(run)).job()
    assert job is not None
    assert all(value in card.text for value in (job["fingerprint"], job["identity"]["weights"], "center-crop"))


def test_code_of_the_card_runs(run: Path, tmp_path: Path) -> None:
    text = (run / "README.md").read_text()
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    names: dict = {}
    exec(code.replace('"path/or/repo"', f'"{run}", cache_dir="{tmp_path}"'), names)
    assert names["image"].shape == (1, 3, 32, 32)
    assert isinstance(names["image"], torch.Tensor)


def test_model_and_grids_of_the_card_are_those_of_the_run(run: Path) -> None:
    """A folder in a repository, one commit of it, and its range of pixels."""
    output = Output(Storage(), str(run))
    job, summary = output.job() or {}, output.summary() or {}
    job["config"]["model"] |= {"path": "owner/name", "subfolder": "vqvae", "revision": "0123abc"}
    job["identity"]["model"]["value_range"] = "0..1"
    job["spec"] |= {"grid_height": 0, "grid_width": 0}
    text = dataset_card(job, summary)
    call = 'VQModel.from_pretrained("owner/name", subfolder="vqvae", revision="0123abc", value_range="0..1")'
    assert f"model = {call}\n" in text
    assert "34 rows of tokens, in grids of several shapes (codes 0 to 63), made" in text


def test_sources_that_came_later(run: Path) -> None:
    """The card names what lies in OUTPUT, not what the first command named."""
    output = Output(Storage(), str(run))
    job, summary = output.job() or {}, output.summary() or {}
    sources = sources_of([f"s3://b/{n}/0.tar" for n in range(23)] + ["s3://a/x.tar", "s3://a/y.tar"])
    text = dataset_card(job, summary | {"sources": sources})
    assert "| sources | `s3://a` (2), `s3://b/0` (1), `s3://b/1` (1), " in text
    assert ", and 4 more folders |" in text
    del summary["sources"]
    assert "| sources | `x` |" in dataset_card(job, summary)


@pytest.mark.parametrize(
    ("rows", "category"),
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (12_345, "10K<n<100K"), (10**9, "1B<n<10B"), (10**13, "n>1T")],
)
def test_size_category(run: Path, rows: int, category: str) -> None:
    output = Output(Storage(), str(run))
    card = dataset_card(output.job() or {}, (output.summary() or {}) | {"rows": rows})
    assert yaml.safe_load(card.split("---")[1])["size_categories"] == [category]
