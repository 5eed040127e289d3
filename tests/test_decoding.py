"""Rows back to pictures."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset as wds
from PIL import Image

from pipeline.decoding import DecodeConfig, Picture, choose, decode
from pipeline.errors import ModelError, UsageError
from pipeline.exports.source import Source, open_source
from pipeline.model import VQModel, weights_hash
from pipeline.shards.manifest import shard_id
from pipeline.storage import Storage
from pipeline.tokens.schema import TokenSpec
from tests.support.models import save_tiny_model
from tests.support.token_runs import make_run, telling_tokens

SPEC = TokenSpec(64, 4, 8)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Source:
    """2 views of each of 17 samples in row groups of 4, made by the tiny model as far as job.json tells."""
    weights = weights_hash(VQModel.from_pretrained(tiny_model))
    folder = tmp_path_factory.mktemp("run")
    run = make_run(folder, (10, 7), views=2, spec=SPEC, model=str(tiny_model), weights=weights)
    return open_source(Storage(), run)


def picture(tiny_model: Path, shard: int, sample: int, view: int) -> np.ndarray:
    """What the row's tokens show, uint8 [16, 32, 3]."""
    grid = torch.from_numpy(telling_tokens(shard, sample, view, SPEC))[None]
    image = VQModel.from_pretrained(tiny_model).decode_indices(grid)[0]
    return ((image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()


@pytest.mark.parametrize("form", ["png", "webp"])
def test_rows_of_keys_as_files(source: Source, tiny_model: Path, tmp_path: Path, form: str) -> None:
    assert decode(source, DecodeConfig(to=str(tmp_path), keys=("1/6", "0/3"), form=form)) == 4
    found = {path.name: np.asarray(Image.open(path)) for path in tmp_path.iterdir()}
    names = {
        f"{shard_id(f's3://corpus/{s:05d}.tar')}-{i:06d}-{v}-{s}_{i}.{form}": picture(tiny_model, s, i, v)
        for s, i in ((0, 3), (1, 6))
        for v in range(2)
    }
    assert found.keys() == names.keys()
    assert all(np.abs(found[name].astype(int) - names[name].astype(int)).max() <= 1 for name in names)


def test_rows_by_lot(source: Source, tmp_path: Path) -> None:
    lots = [choose(source, DecodeConfig(to="x", sample=9, seed=seed)).tolist() for seed in (0, 0, 1)]
    assert lots[0] == lots[1] != lots[2]
    assert all(sorted(set(lot)) == lot and len(lot) == 9 for lot in lots)
    assert choose(source, DecodeConfig(to="x", sample=1000)).tolist() == list(range(34))
    assert decode(source, DecodeConfig(to=str(tmp_path), sample=3)) == len(list(tmp_path.iterdir())) == 3


def in_tar(path: Path) -> list[dict[str, Any]]:
    with open(path, "rb") as file:
        return list(wds.tariterators.group_by_keys(wds.tariterators.tar_file_expander([{"url": "x", "stream": file}])))


def test_webdataset(source: Source, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.decoding.TAR_SAMPLES", 3)
    assert decode(source, DecodeConfig(to=str(tmp_path), keys=("0/3", "0/6"), form="tar")) == 4
    tars = [in_tar(tmp_path / name) for name in ("00000.tar", "00001.tar")]
    assert [len(samples) for samples in tars] == [3, 1]
    samples = [sample for some in tars for sample in some]
    assert [sample["__key__"] for sample in samples] == [f"{number:09d}" for number in range(4)]
    assert [sample["txt"] for sample in samples] == [b"caption 0 3", b"caption 0 3", b"caption 0 6", b"caption 0 6"]
    assert [sample.get("cls") for sample in samples] == [b"3", b"3", None, None]
    shown = np.asarray(Image.open(io.BytesIO(samples[1]["png"])))
    assert np.abs(shown.astype(int) - picture(tiny_model, 0, 3, 1).astype(int)).max() <= 1


def test_keys_are_no_paths(source: Source, tmp_path: Path, tiny_model: Path) -> None:
    """A tar may call its samples anything."""
    weights = source.job["identity"]["weights"]
    run = make_run(tmp_path / "run", (1,), spec=SPEC, model=str(tiny_model), weights=weights, prefix="../../../evil/")
    decode(open_source(Storage(), run), DecodeConfig(to=str(tmp_path / "to" / "here"), sample=1))
    name = f"{shard_id('s3://corpus/00000.tar')}-000000-0-_.._.._evil_0_0.png"
    assert [path.name for path in tmp_path.rglob("*.png")] == [name]
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["here"]


@pytest.mark.parametrize(("key", "left"), [("\u5c71" * 300, "_"), ("\u5c71a" * 300, "_a" * 40), ("x" * 300, "x" * 80)])
def test_name_of_a_long_key(key: str, left: str) -> None:
    """No disk takes more than 255 bytes."""
    shard = f"s3://corpus/{'s' * 300}.tar"
    row = {"key": key, "shard": shard, "sample_index": 999_999, "view": 255}
    name = Picture(row, np.zeros((1, 1, 3), np.uint8)).name
    assert name == f"{shard_id(shard)}-999999-255-{left}"
    assert len(f"{name}.webp".encode()) <= 255


def test_keys_of_a_list(source: Source, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"0/3\r\n1/6\r\n")
    given = [(f"@{tmp_path}/list.txt", "0/1"), ("0/1", "0/3", "1/6")]
    rows = [choose(source, DecodeConfig(to="x", keys=keys)).tolist() for keys in given]
    assert rows[0] == rows[1] == [2, 3, 6, 7, 32, 33]
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    for name in ("bad", "none"):
        with pytest.raises(UsageError, match=f"must be a text file with one key per line, got @.*/{name}.txt"):
            choose(source, DecodeConfig(to="x", keys=(f"@{tmp_path}/{name}.txt",)))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "either --keys or --sample"),
        ({"keys": ("0/1",), "sample": 3}, "either --keys or --sample"),
        ({"keys": ("0/1", "nobody", "none")}, "2 of 3 keys are not in the run, such as 'nobody'"),
    ],
)
def test_rows_that_cannot_be(source: Source, tmp_path: Path, options: dict, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        decode(source, DecodeConfig(to=str(tmp_path), **options))


def test_model_that_did_not_make_them(source: Source, tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path / "other", seed=1)
    with pytest.raises(ModelError, match="did not make these tokens"):
        decode(source, DecodeConfig(to=str(tmp_path), sample=1, model=str(other)))
