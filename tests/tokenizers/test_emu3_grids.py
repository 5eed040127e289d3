"""A run of Emu3's recipe and tokenizer: grids as long and as wide as the images, through to pictures and batches."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pipeline.decoding import DecodeConfig, decode
from pipeline.exports.source import open_source
from pipeline.images import ImageConfig, prepare
from pipeline.storage import Storage
from pipeline.tokens.dataset import TokenDataset
from pipeline.tokens.order import Sampling
from pipeline.verify import verify
from tests.support.corpora import jpeg, write_shard
from tests.support.families import emu3_f8
from tests.support.whole_runs import whole_run

Made = Callable[[str, Callable[[Path], object]], Path]
SIZE = 512  # pixels: the least that the recipe takes
SIDES = [(40, 40), (60, 30), (80, 80)]  # width and height of the images
GRIDS = [(64, 64), (46, 91), (64, 64)]  # height and width: 45.3 and 90.5, made up to 512 x 512 pixels


@pytest.fixture(scope="module")
def run(made_once: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of three images in two shapes; without QA, whose decoding is what `decode` does below."""
    shards = tmp_path_factory.mktemp("shards")
    write_shard(shards / "0.tar", {f"k{i}": {"jpg": jpeg(i, *sides)} for i, sides in enumerate(SIDES)})
    model = made_once("model of emu3 f8", emu3_f8)
    settings = {"image.recipe": "emu3", "image.size": SIZE, "qa.samples_per_shard": 0, "qa.min_golden_agreement": None}
    return made_once("run of emu3 f8", lambda folder: whole_run(model, shards, folder, **settings))


def rows_of(run: Path) -> list[dict]:
    return pq.read_table(next((run / "tokens").iterdir())).to_pylist()


def test_tokens_are_the_librarys_own(run: Path) -> None:
    import transformers

    vq = transformers.Emu3VQVAE.from_pretrained(run.with_name("model of emu3 f8")).eval()
    row = rows_of(run)[1]
    pixels = prepare(jpeg(1, *SIDES[1]), ImageConfig(recipe="emu3", size=SIZE)).views[0].pixels
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        (expected,) = vq.encode(images, image_sizes=torch.tensor([images.shape[2:]])).image_tokens
    found = np.array(row["tokens"]).reshape(row["grid_height"], row["grid_width"])
    assert len(np.unique(found)) > 20
    np.testing.assert_array_equal(found, expected.numpy())


def test_store_is_whole_and_grids_are_as_the_images(run: Path) -> None:
    result = verify(Storage(), str(run))
    assert result.ok, result.findings
    assert [(row["grid_height"], row["grid_width"]) for row in rows_of(run)] == GRIDS


def test_pictures_come_back_in_their_shapes(run: Path, tmp_path: Path) -> None:
    assert decode(open_source(Storage(), str(run)), DecodeConfig(to=str(tmp_path), keys=("k0", "k1"))) == 2
    for path in tmp_path.iterdir():
        height, width = GRIDS[int(path.stem[-1])]
        with Image.open(path) as picture:
            assert picture.size == (8 * width, 8 * height)


def test_batches_are_of_one_grid(run: Path) -> None:
    batches = list(TokenDataset(str(run), Sampling(batch=2, shuffle=False), columns=["key"]))
    assert [batch["key"] for batch in batches] == [["k0", "k2"], ["k1"]]
    for batch in batches:
        numbers = [int(key[1]) for key in batch["key"]]
        assert batch["tokens"].tolist() == [rows_of(run)[number]["tokens"] for number in numbers]
