"""The dataset card: what it says is so, and its code runs."""

import re
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from huggingface_hub import DatasetCard

from pipeline.card import dataset_card
from pipeline.output import Output
from pipeline.storage import Storage
from pipeline.tokens.schema import TokenSpec
from tests.support.token_runs import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """2 views of each of 17 samples, as if made by the tiny model."""
    folder = tmp_path_factory.mktemp("run")
    make_run(folder, (10, 7), views=2, spec=TokenSpec(64, 8, 8), model=str(tiny_model))
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


@pytest.mark.parametrize(
    ("rows", "category"),
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (12_345, "10K<n<100K"), (10**9, "1B<n<10B"), (10**13, "n>1T")],
)
def test_size_category(run: Path, rows: int, category: str) -> None:
    output = Output(Storage(), str(run))
    card = dataset_card(output.job() or {}, (output.summary() or {}) | {"rows": rows})
    assert yaml.safe_load(card.split("---")[1])["size_categories"] == [category]
