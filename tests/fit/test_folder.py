"""What a training leaves beside the model: figures, pictures, golden images; each checked against the model itself."""

import csv
import io
import math
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pipeline.errors import UsageError
from pipeline.fit import FitTask, ImageSource, fit_folder
from pipeline.model import VQModel
from pipeline.model.checkpoint import WEIGHTS_NAME
from pipeline.qa.golden import read_golden
from pipeline.storage import Storage
from tests.fit.cases import Notes, photographs, quick_task

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def done(photos: Path, others: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[FitTask, Notes]:
    task = quick_task(tmp_path_factory.mktemp("done") / "model", photos, held_out=others)
    notes = Notes()
    assert fit_folder(task, notes)
    return task, notes


def decoded(folder: Path, images: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
    model = VQModel.from_pretrained(folder)
    indices = model.encode_indices(torch.from_numpy(images))
    samples = (model.decode_indices(indices) + 1) * 127.5
    return samples.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy(), indices


def test_held_out_figures_are_the_models(done: tuple[FitTask, Notes], others: Path) -> None:
    task, notes = done
    rows = list(csv.DictReader((task.folder / "log.csv").read_text().splitlines()))
    assert [row["step"] for row in rows if row["held_out_psnr"]] == ["10", "20", "24"]
    images = np.stack(list(ImageSource(folder=others).squares(32)))
    found, indices = decoded(task.folder, images)
    errors = ((images.astype(float) - found) ** 2).mean(axis=(1, 2, 3))
    psnr = np.mean([10 * math.log10(255**2 / error) for error in errors])
    assert float(rows[-1]["held_out_psnr"]) == pytest.approx(psnr, abs=0.05)
    assert float(rows[-1]["held_out_usage"]) == pytest.approx(len(indices.unique()) / 32, abs=0.04)
    assert notes.reports[-1].held_out_psnr == pytest.approx(psnr, abs=0.05)
    assert notes.reports[-2].held_out_psnr is not None
    assert notes.reports[0].held_out_psnr is None


def test_log_keeps_its_columns_in_order(done: tuple[FitTask, Notes]) -> None:
    header, first, *_ = (done[0].folder / "log.csv").read_text().splitlines()
    assert header == "step,loss,psnr,usage,perplexity,held_out_psnr,held_out_usage"
    assert first.startswith("5,")
    assert first.endswith(",,")


def test_strip_shows_held_out_images_above_their_reconstructions(done: tuple[FitTask, Notes], others: Path) -> None:
    strip = np.asarray(Image.open(done[0].folder / "strip.png"))
    assert strip.shape == (32 + 4 + 32, 32 + 4 + 32, 3)
    images = np.stack(list(ImageSource(folder=others).squares(32)))
    found, _ = decoded(done[0].folder, images)
    for left, image, reconstruction in zip((0, 36), images, found, strict=True):
        assert (strip[:32, left : left + 32] == image).all()
        difference = strip[36:, left : left + 32].astype(int) - reconstruction
        assert abs(difference).max() <= 1, "the model is in another memory format than the loaded one"


def test_strip_without_held_out_images(photos: Path, tmp_path: Path) -> None:
    fit_folder(quick_task(tmp_path / "model", photos, steps=9), Notes())
    strip = Image.open(tmp_path / "model" / "strip.png")
    assert strip.size == (4 * 36 - 4, 68)
    middle = Image.fromarray(photographs(1)[0][:48]).resize((1, 1))  # about the colour of the first
    assert strip.crop((0, 0, 32, 32)).resize((1, 1)).getpixel((0, 0)) == pytest.approx(middle.getpixel((0, 0)), abs=25)


def test_curve_has_a_point_per_report(done: tuple[FitTask, Notes]) -> None:
    drawing = ET.parse(done[0].folder / "curve.svg").getroot()
    lines = drawing.findall(f"{SVG}polyline")
    assert [len(line.attrib["points"].split()) for line in lines] == [5, 5, 3]
    ends = [f"{end.attrib['cx']},{end.attrib['cy']}" for end in drawing.findall(f"{SVG}circle")]
    assert ends == [line.attrib["points"].split()[-1] for line in lines]
    heights = [float(point.split(",")[1]) for point in lines[0].attrib["points"].split()]
    losses = [report.loss for report in done[1].reports]
    assert np.argsort(heights).tolist() == np.argsort(losses)[::-1].tolist(), "a larger loss is drawn higher"


@pytest.mark.parametrize("below", ["", "model"])
def test_output_that_is_a_file(below: str, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UsageError, match=f"{tmp_path}/mine.* must be a folder, but {tmp_path}/mine is a file"):
        fit_folder(quick_task(tmp_path / "mine" / below, photos), Notes())
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize("half", [True, False])
def test_golden_images_are_of_the_stored_model(half: bool, photos: Path, tmp_path: Path) -> None:
    task = quick_task(tmp_path / "model", photos, steps=9)
    fit_folder(FitTask(task.folder, task.source, task.config, half=half), Notes())
    golden = read_golden(Storage(), str(task.folder))
    assert golden
    model = VQModel.from_pretrained(task.folder)
    dtypes = {tensor.dtype for tensor in load_file(task.folder / WEIGHTS_NAME).values()}
    assert dtypes == {torch.float16 if half else torch.float32}
    for one in golden:
        pixels = np.asarray(Image.open(io.BytesIO(one.image)))
        assert model.encode_indices(torch.from_numpy(pixels.copy())[None])[0].tolist() == one.grid.tolist()


def test_stop_while_images_are_read(photos: Path, tmp_path: Path) -> None:
    assert not fit_folder(quick_task(tmp_path / "model", photos), notes := Notes(stop_after=0))
    assert notes.began_at == []


def test_held_out_folder_without_an_image(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("no image")
    with pytest.raises(UsageError, match="held-out images: must be at least one that can be decoded, got none"):
        fit_folder(quick_task(tmp_path / "model", photos, held_out=tmp_path / "texts"), Notes())
