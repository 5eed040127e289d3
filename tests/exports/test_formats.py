"""Every layout, read back the way its training code reads it."""

import io
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import webdataset as wds
from huggingface_hub import DatasetCard

from jobs.export import NAMES
from pipeline.errors import UsageError
from pipeline.exports import FORMATS
from pipeline.exports.job import ExportConfig, Exported, export
from pipeline.exports.source import open_source
from pipeline.storage import Storage
from pipeline.tokens.schema import TokenSpec
from tests.support.commands import ROOT
from tests.support.token_runs import make_run, telling_tokens

SPEC = TokenSpec(1024, 2, 3)
SAMPLES = (10, 7, 4)
VIEWS = 2


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """2 views of each of 21 samples, all labelled, in row groups that cut through samples."""
    return make_run(tmp_path_factory.mktemp("run"), SAMPLES, views=VIEWS, spec=SPEC, group=5, labelled=True)


def do(run: str, to: Path, layout: str, rows: int | None = 8, **options: Any) -> Exported:
    config = ExportConfig(format=layout, to=str(to), rows_per_file=rows, **options)
    return export(open_source(Storage(), run, view=config.view), config)


def expected(views: int = VIEWS) -> list[list[int]]:
    """The tokens of every row, in order."""
    return [
        telling_tokens(s, i, v, SPEC).reshape(-1).tolist()
        for s, count in enumerate(SAMPLES)
        for i in range(count)
        for v in range(views)
    ]


def samples() -> list[tuple[int, int]]:
    return [(s, i) for s, count in enumerate(SAMPLES) for i in range(count)]


def caption(s: int, i: int) -> str:
    return "" if i % 3 == 2 else f"caption {s} {i}"


def in_tars(folder: Path, *handlers: Any) -> Iterator[dict[str, Any]]:
    """The samples of all tars, in order."""
    return itertools.chain.from_iterable(in_tar(path, *handlers) for path in sorted(folder.glob("*.tar")))


def in_tar(path: Path, *handlers: Any) -> list[dict[str, Any]]:
    """The samples of a tar, decoded by webdataset (which leaves files open that it opened itself)."""
    with open(path, "rb") as file:
        members = wds.tariterators.tar_file_expander([{"url": str(path), "stream": file}])
        return list(wds.decode(*handlers)(wds.tariterators.group_by_keys(members)))


def test_hugging_face(run: str, tmp_path: Path) -> None:
    done = do(run, tmp_path / "to", "hf")
    names = [path.name for path in sorted((tmp_path / "to" / "data").iterdir())]
    assert names == [f"train-{n:05d}-of-00006.parquet" for n in range(6)]
    data = datasets.load_dataset(str(tmp_path / "to"), split="train", cache_dir=str(tmp_path / "cache"))
    assert data["tokens"][:] == expected()
    whole = pq.read_table(Path(run.removeprefix("file://")) / "tokens").to_pylist()
    assert data.to_list() == whole, "all columns"
    card = DatasetCard.load(tmp_path / "to" / "README.md")
    assert card.data.dataset_info["splits"][0]["num_examples"] == done.rows == 42
    assert "rejects.parquet" not in card.text


def test_hugging_face_makes_large_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of half the size that is allowed to all of it."""
    run = make_run(tmp_path / "run", (300, 200), spec=TokenSpec(1024, 8, 8), group=100)
    assert do(run, tmp_path / "one", "hf", rows=None).units == 1
    groups = pq.read_metadata(tmp_path / "one" / "data" / "train-00000-of-00001.parquet")
    assert [groups.row_group(n).num_rows for n in range(groups.num_row_groups)] == [500]
    monkeypatch.setattr("pipeline.exports.hugging_face.FILE_BYTES", 20_000)
    assert do(run, tmp_path / "more", "hf", rows=None).units > 2
    sizes = [path.stat().st_size for path in (tmp_path / "more" / "data").iterdir()]
    assert all(10_000 < size <= 20_000 for size in sizes), sizes


def test_llamagen(run: str, tmp_path: Path) -> None:
    """As dataset/imagenet.py reads it: by number, from 0, one view by chance where the path has 'flip' in it."""
    do(run, tmp_path, "llamagen")
    codes = [np.load(tmp_path / "imagenet16_codes" / f"{i}.npy") for i in range(21)]
    labels = [np.load(tmp_path / "imagenet16_labels" / f"{i}.npy") for i in range(21)]
    assert {(c.shape, c.dtype.name) for c in codes} == {((1, 2, 6), "int64")}
    assert {(y.shape, y.dtype.name) for y in labels} == {((1,), "int64")}
    assert np.concatenate(codes).reshape(-1, 6).tolist() == expected()
    assert [int(y[0]) for y in labels] == [i % 5 for _, i in samples()]
    assert len(list((tmp_path / "imagenet16_codes").iterdir())) == 21


def test_llamagen_text(run: str, tmp_path: Path) -> None:
    """As extract_codes_t2i.py writes it: NAME/k.npy for line k of NAME.jsonl."""
    with pytest.raises(UsageError, match="--view 0"):
        do(run, tmp_path, "llamagen-t2i")
    do(run, tmp_path, "llamagen-t2i", view=1)
    found = []
    for path in sorted(tmp_path.glob("*.jsonl")):
        for k, line in enumerate(path.read_text().splitlines()):
            codes, about = np.load(tmp_path / path.stem / f"{k}.npy"), json.loads(line)
            assert (codes.shape, codes.dtype.name) == ((1, 6), "int64")
            s, i, v = codes[0, :3].tolist()
            assert (about["image_path"], about["text"] or "", v) == (f"{s}/{i}", caption(s, i), 1)
            found.append((s, i))
    assert found == samples()


def test_rar(run: str, tmp_path: Path) -> None:
    do(run, tmp_path, "rar")
    lines = [json.loads(line) for line in (tmp_path / "pretokenized.jsonl").read_text().splitlines()]
    assert [line["tokens"] for line in lines] == expected()
    assert [line["class_id"] for line in lines] == [i % 5 for _, i in samples() for _ in range(VIEWS)]
    assert not list((tmp_path / "lines").iterdir()), "the pieces are gone"


def side_by_side(*folders: Path) -> list[tuple[dict[str, Any], ...]]:
    """As 4M's multi_tarfile_samples reads modalities: tar by tar; where keys differ it drops the rest of the tars."""
    steps = []
    for names in zip(*(sorted(folder.glob("*.tar")) for folder in folders), strict=True):
        for step in zip(*map(in_tar, names), strict=False):
            if len({sample["__key__"] for sample in step}) > 1:
                break
            steps.append(step)
    return steps


def test_fourm(run: str, tmp_path: Path) -> None:
    """A tar of each shard, the keys those of the samples."""
    do(run, tmp_path, "4m", rows=None)
    steps = side_by_side(*(tmp_path / name for name in ("tok_rgb", "crop_settings", "caption")))
    assert [sample["__key__"] for step in steps for sample in step[:1]] == [f"{s}/{i}" for s, i in samples()]
    assert len(list((tmp_path / "tok_rgb").iterdir())) == len(SAMPLES)
    tokens = np.stack([tok["npy"] for tok, _, _ in steps])
    assert (tokens.dtype.name, tokens.shape) == ("int16", (21, 2, 6))
    assert tokens.reshape(-1, 6).tolist() == expected()
    assert all(crop["npy"].tolist() == [[0, 0, 32, 32, 0], [1, 0, 32, 32, 1]] for _, crop, _ in steps)
    assert [text["txt"] for _, _, text in steps] == [caption(s, i) for s, i in samples()]


def test_fourm_of_two_runs(run: str, tmp_path: Path) -> None:
    """A reject more costs the rest of its tar, and no sample ever meets another: tokens tell which sample they are."""
    made = {"views": VIEWS, "spec": SPEC, "group": 5, "labelled": True}
    other = make_run(tmp_path / "other", SAMPLES, rejects=frozenset({(1, 4)}), **made)
    do(run, tmp_path / "a", "4m", rows=None)
    do(other, tmp_path / "b", "4m", rows=None)
    steps = side_by_side(tmp_path / "a" / "tok_rgb", tmp_path / "b" / "tok_rgb")
    pairs = [tuple(tuple(sample["npy"][0, :2].tolist()) for sample in step) for step in steps]
    assert pairs == [(sample, sample) for sample in samples() if sample not in [(1, 4), (1, 5), (1, 6)]]


@pytest.mark.parametrize(("recipe", "top", "dtype"), [("4m", 3.0, "int64"), ("center-crop", 2.25, "float32")])
def test_fourm_crop_settings(tmp_path: Path, recipe: str, top: float, dtype: str) -> None:
    """A recipe has one type of them, whatever numbers come."""
    for name, tops in (("run", top), ("whole", 3.0)):
        run = make_run(tmp_path / name, (3,), views=VIEWS, recipe=recipe, top=tops)
        do(run, tmp_path / f"{name}-to", "4m")
        (crops, *_) = [sample["npy"] for sample in in_tars(tmp_path / f"{name}-to" / "crop_settings")]
        assert (crops.dtype.name, crops.tolist()) == (dtype, [[tops, 0, 32, 32, 0], [tops, 0, 32, 32, 1]])


def test_fourm_keys_that_are_equal(tmp_path: Path) -> None:
    """Shards may number their samples alike; a tar of two of them may not."""
    run = make_run(tmp_path / "run", (2, 1), keys=str)
    do(run, tmp_path / "to", "4m", rows=None)
    assert [sample["__key__"] for sample in in_tars(tmp_path / "to" / "tok_rgb")] == ["0", "1", "0"]
    with pytest.raises(UsageError, match=r"key '0' of s3://corpus/00001\.tar comes a second time in one tar"):
        do(run, tmp_path / "one", "4m", rows=8)


def test_fourm_and_wide_codes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", (3,), spec=TokenSpec(1 << 15, 2, 2))
    do(run, tmp_path / "fits", "4m")
    run = make_run(tmp_path / "wide", (3,), spec=TokenSpec((1 << 15) + 1, 2, 2))
    with pytest.raises(UsageError, match="int16"):
        do(run, tmp_path / "to", "4m")


def test_open_muse(run: str, tmp_path: Path) -> None:
    """As training/data.py reads it: `.pth` under the name of the model, lower case, dots for slashes."""
    do(run, tmp_path, "open-muse", name="openMUSE/vqgan-f16-8192-laion")
    pth = wds.handle_extension("pth", lambda data: torch.load(io.BytesIO(data), weights_only=True))
    rows = list(in_tars(tmp_path, pth))
    tokens = [row["openmuse.vqgan-f16-8192-laion.pth"] for row in rows]
    assert {(t.dtype, tuple(t.shape)) for t in tokens} == {(torch.int64, (6,))}
    assert [t.tolist() for t in tokens] == expected()
    about = [row["json"] for row in rows]
    assert {(a["original_width"], a["original_height"]) for a in about} == {(50, 40)}
    assert [(a["key"], a["view"]) for a in about] == [(f"{s}/{i}", v) for s, i in samples() for v in range(VIEWS)]


def test_maskgit(run: str, tmp_path: Path) -> None:
    """As Dataset/dataloader.py reads it: LongTensor(vq_feat.npy) and the text."""
    do(run, tmp_path, "maskgit")
    rows = list(in_tars(tmp_path, "rgb"))
    grids = torch.stack([torch.LongTensor(row["vq_feat.npy"]) for row in rows])
    assert grids.shape == (42, 2, 3)
    assert grids.reshape(-1, 6).tolist() == expected()
    assert [row["txt"] for row in rows] == [caption(s, i) for s, i in samples() for _ in range(VIEWS)]


def test_webdataset(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", (9,), spec=TokenSpec(1 << 17, 2, 3))
    do(run, tmp_path / "to", "webdataset", rows=4)
    rows = list(in_tars(tmp_path / "to"))
    assert [row["__key__"] for row in rows] == [f"{number:09d}" for number in range(9)]
    assert {(row["npy"].dtype.name, row["npy"].shape) for row in rows} == {("uint32", (2, 3))}
    assert [row["npy"].flat[1] for row in rows] == list(range(9))
    assert [row["txt"] for row in rows] == [caption(0, i) for i in range(9)]
    assert [row.get("cls") for row in rows] == [0, 1, 2, 3, 4, 0, None, 2, 3]
    (part,) = Path(run.removeprefix("file://")).glob("tokens/*")
    told = pq.read_table(part).drop_columns(["tokens", "caption"]).to_pylist()
    assert [row["json"] for row in rows] == told


def test_dalle_mini(run: str, tmp_path: Path) -> None:
    """As src/dalle_mini/data.py reads it: `datasets`, streaming, columns caption and encoding."""
    do(run, tmp_path / "to", "dalle-mini")
    files = {"train": [str(path) for path in sorted((tmp_path / "to" / "data").iterdir())]}
    rows = list(datasets.load_dataset("parquet", data_files=files, streaming=True)["train"])
    assert [row["encoding"] for row in rows] == expected()
    assert [row["caption"] for row in rows] == [caption(s, i) for s, i in samples() for _ in range(VIEWS)]


@pytest.mark.parametrize(("codes", "dtype"), [(1024, "uint16"), (1 << 17, "uint32")])
def test_binary(tmp_path: Path, codes: int, dtype: str) -> None:
    """As nanoGPT's train.py reads it: one memmap."""
    run = make_run(tmp_path / "run", SAMPLES, spec=TokenSpec(codes, 2, 3))
    do(run, tmp_path / "to", "bin")
    index = json.loads((tmp_path / "to" / "index.json").read_text())
    assert (index["dtype"], index["rows"], index["tokens_per_row"]) == (dtype, 21, 6)
    tokens = np.memmap(tmp_path / "to" / "train.bin", dtype=dtype, mode="r").reshape(21, 6)
    assert tokens[:, :2].tolist() == [list(sample) for sample in samples()]
    labels = np.fromfile(tmp_path / "to" / "train_labels.bin", "<i8")
    assert labels.tolist() == [-1 if i % 7 == 6 else i % 5 for _, i in samples()]


def mds_samples(folder: Path) -> Iterator[dict[str, Any]]:
    """A reader of MDS from the layout that mosaicml/streaming documents in streaming/base/format/mds/reader.py.

    Its own cannot be installed beside us: mosaicml-streaming 0.13, the newest, wants numpy < 2.2, google-cloud-storage
    < 3.3 and transformers < 5, and our set has newer ones of all three. It read such an export once, by hand.
    """
    for shard in json.loads((folder / "index.json").read_text())["shards"]:
        assert (shard["format"], shard["version"], shard["zip_data"]) == ("mds", 2, None)
        data = (folder / shard["raw_data"]["basename"]).read_bytes()
        assert len(data) == shard["raw_data"]["bytes"]
        count = int(np.frombuffer(data, "<u4", 1)[0])
        assert count == shard["samples"]
        ends = np.frombuffer(data, "<u4", count + 1, 4)
        for start, stop in itertools.pairwise(ends):
            yield mds_sample(data[start:stop], shard)


def mds_sample(data: bytes, shard: dict[str, Any]) -> dict[str, Any]:
    sizes, at = [], 0
    for size in shard["column_sizes"]:
        sizes.append(size or int(np.frombuffer(data, "<u4", 1, at)[0]))
        at += 0 if size else 4
    sample: dict[str, Any] = {}
    for name, encoding, size in zip(shard["column_names"], shard["column_encodings"], sizes, strict=True):
        value, at = data[at : at + size], at + size
        kind, _, rest = encoding.partition(":")
        read = {"str": bytes.decode, "int": lambda v: int(np.frombuffer(v, "<i8")[0])}
        sample[name] = np.frombuffer(value, rest.split(":")[0]).tolist() if kind == "ndarray" else read[kind](value)
    assert at == len(data)
    return sample


def test_mds_above_its_offsets(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.exports.mds.MOST_BYTES", 600)
    with pytest.raises(UsageError, match=r"smaller than 600 bytes, .* for 8 rows; give fewer --rows-per-file"):
        do(run, tmp_path, "mds")


def test_mds(run: str, tmp_path: Path) -> None:
    do(run, tmp_path, "mds")
    rows = list(mds_samples(tmp_path))
    assert list(rows[0]) == ["caption", "key", "label", "tokens", "view"]
    assert [row["tokens"] for row in rows] == expected()
    assert [(row["key"], row["caption"], row["label"], row["view"]) for row in rows] == [
        (f"{s}/{i}", caption(s, i), i % 5, v) for s, i in samples() for v in range(VIEWS)
    ]


@pytest.mark.parametrize("layout", sorted(FORMATS.keys() - {"llamagen-t2i"}))
def test_bytes_do_not_depend_on_when_or_how_often(run: str, tmp_path: Path, layout: str) -> None:
    for name in ("a", "b"):
        do(run, tmp_path / name, layout)
    files = {
        name: {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("a", "b")
    }
    assert files["a"] == files["b"]
    assert len(files["a"]) > 1


@pytest.mark.parametrize("layout", ["llamagen", "rar"])
def test_sample_without_a_label(tmp_path: Path, layout: str) -> None:
    """It is found before anything is written, though it comes last."""
    run = make_run(tmp_path / "run", (5, 7))
    with pytest.raises(UsageError, match="sample 1/6 has no label"):
        do(run, tmp_path / "to", layout, rows=1)
    assert not (tmp_path / "to").exists()


def test_one_view(run: str, tmp_path: Path) -> None:
    done = do(run, tmp_path, "bin", view=1)
    assert done.rows == 21
    tokens = np.fromfile(tmp_path / "train.bin", "<u2").reshape(21, 6)
    assert tokens.tolist() == expected()[1::2]


def test_every_layout_is_told_of() -> None:
    documented = re.findall(r"^\| `([\w-]+)` \|", (ROOT / "docs" / "exports.md").read_text(), re.MULTILINE)
    assert set(NAMES.split(", ")) == set(documented) == FORMATS.keys()
