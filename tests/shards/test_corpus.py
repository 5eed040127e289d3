"""Shards cut out of photographs: deterministic, whole, and readable."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from pipeline.errors import UsageError
from pipeline.shards import corpus
from pipeline.shards.corpus import CorpusConfig, make_corpus
from pipeline.shards.tar import Sample, TarReader

SMALL = CorpusConfig(shards=2, samples=12, min_side=32, max_side=96)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two photographs of smoothed noise, and a file that is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed, (name, size) in enumerate({"wide.jpg": (160, 100), "tall.PNG": (90, 140)}.items()):
        noise = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(noise).resize(size).save(folder / name)
    (folder / "LICENCE").write_text("public domain")
    return folder


def samples(path: Path) -> list[Sample]:
    with path.open("rb") as file:
        return list(TarReader(file, url=path.name, size=path.stat().st_size))


def test_same_arguments_give_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    one, two = make_corpus(photos, tmp_path / "one", SMALL), make_corpus(photos, tmp_path / "two", SMALL)
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    assert one[0].read_bytes() != one[1].read_bytes()


def test_another_seed_gives_other_bytes(photos: Path, tmp_path: Path) -> None:
    other = SMALL.model_copy(update={"seed": 1})
    one, two = make_corpus(photos, tmp_path / "one", SMALL), make_corpus(photos, tmp_path / "two", other)
    assert one[0].read_bytes() != two[0].read_bytes()


def test_samples_of_a_shard(photos: Path, tmp_path: Path) -> None:
    paths = make_corpus(photos, tmp_path / "new" / "out", SMALL)
    assert [path.name for path in paths] == ["00000.tar", "00001.tar"]
    assert [sample.key for sample in samples(paths[1])] == [f"00001{i:05d}" for i in range(12)]
    for sample in samples(paths[1]):
        sidecar = json.loads(sample.members["json"])
        (extension,) = sample.members.keys() - {"json", "txt"}
        image = Image.open(io.BytesIO(sample.members[extension]))
        assert image.size == (sidecar["width"], sidecar["height"])
        assert sample.members["txt"].decode() == f"a photo of {sidecar['photo']}"
        assert max(image.size) <= SMALL.max_side


def test_kinds_of_images(photos: Path, tmp_path: Path) -> None:
    (path,) = make_corpus(photos, tmp_path / "out", SMALL.model_copy(update={"shards": 1, "samples": 200}))
    members = [sample.members for sample in samples(path)]
    images = [Image.open(io.BytesIO(m[ext])) for m in members for ext in m.keys() - {"json", "txt"}]
    assert {image.format for image in images} == {"JPEG", "PNG", "WEBP"}
    assert {image.mode for image in images if image.format == "JPEG"} == {"RGB", "L", "CMYK"}
    assert {image.getexif().get(corpus.EXIF_ORIENTATION_TAG) for image in images} == {None, 3, 6, 8}
    assert {bool(image.info.get("progressive")) for image in images} == {True, False}


def test_plain_jpeg_alone(photos: Path, tmp_path: Path) -> None:
    config = SMALL.model_copy(update={"shards": 1, "samples": 60, "jpeg_only": True})
    images = [
        Image.open(io.BytesIO(s.members["jpg"])) for s in samples(make_corpus(photos, tmp_path / "out", config)[0])
    ]
    assert {(image.format, image.mode, "exif" in image.info) for image in images} == {("JPEG", "RGB", False)}


def test_sizes_above_the_photos(photos: Path, tmp_path: Path) -> None:
    config = CorpusConfig(shards=1, samples=30, min_side=90, max_side=5000)
    sizes = [json.loads(sample.members["json"]) for sample in samples(make_corpus(photos, tmp_path / "out", config)[0])]
    assert all(size["width"] <= 160 and size["height"] <= 140 for size in sizes)


@pytest.mark.parametrize("name", ["", "LICENCE", "small.png"])
def test_folder_without_large_photos(name: str, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    if name.endswith("png"):
        Image.new("RGB", (400, 31)).save(tmp_path / "photos" / name)
    elif name:
        (tmp_path / "photos" / name).touch()
    with pytest.raises(UsageError, match=r"must hold photos .* of at least 32 pixels a side, none of the"):
        make_corpus(tmp_path / "photos", tmp_path / "out", SMALL)
    assert not (tmp_path / "out").exists()


def test_unreadable_photo(photos: Path, tmp_path: Path) -> None:
    (photos / "broken.jpg").write_bytes((photos / "wide.jpg").read_bytes()[:500])
    with pytest.raises(UsageError, match=r"photo .*broken.jpg cannot be read \("):
        make_corpus(photos, tmp_path / "out", SMALL)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must be a folder"):
        make_corpus(tmp_path / "photos", tmp_path / "out", SMALL)


def test_interrupted_making_leaves_no_half_shard(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_corpus(photos, tmp_path / "out", SMALL)[0].read_bytes()
    made = iter(range(5))

    def interrupted(*arguments: object) -> dict[str, bytes]:
        if next(made, None) is None:
            raise KeyboardInterrupt
        return {"jpg": b"x"}

    monkeypatch.setattr(corpus, "_sample", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_corpus(photos, tmp_path / "out", SMALL)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["00000.tar", "00001.tar"]
    assert (tmp_path / "out" / "00000.tar").read_bytes() == whole


def test_sides_out_of_order() -> None:
    with pytest.raises(ValidationError, match="min_side must be at most max_side, got 64 and 32"):
        CorpusConfig(min_side=64, max_side=32)
