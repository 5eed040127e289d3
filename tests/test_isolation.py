"""Decoding behind a wall: the child may die, hang or eat memory; the caller gets a reject and goes on."""

import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.errors import Filtered, Reject
from pipeline.images import ImageConfig, Prepared
from pipeline.images.catalogue import DecodeMode
from pipeline.isolation import IsolatedDecoder, prepare_sample
from pipeline.select import SelectConfig
from tests.support.corpora import sample

IMAGE = ImageConfig(size=32)
POISON = {
    "crash": "import ctypes; ctypes.string_at(0)",
    "hang": "import time; time.sleep(1000)",
    "memory": "x = bytearray(1 << 40)",
}


@pytest.fixture
def poisoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[IsolatedDecoder]:
    """A decoder whose child runs Python code found in a sample's `poison` member."""
    (tmp_path / "sitecustomize.py").write_text(
        "import pipeline.images.members as m\n"
        "find = m.find_image\n"
        "def find_image(members):\n"
        "    exec(members.get('poison', b''))\n"
        "    return find(members)\n"
        "m.find_image = find_image\n"
        "import pipeline.images\n"
        "pipeline.images.find_image = find_image\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parent.parent}")
    decoder = IsolatedDecoder(IMAGE, 0, SelectConfig(), seconds=6.0, memory_bytes=4 << 30)
    yield decoder
    decoder.close()


def test_pixels_are_those_of_this_process() -> None:
    decoder = IsolatedDecoder(IMAGE, 0, SelectConfig(), seconds=30.0, memory_bytes=4 << 30)
    for index in range(3):
        isolated, here = decoder("k", sample(0, index)), prepare_sample("k", sample(0, index), IMAGE, 0)
        assert isinstance(isolated, Prepared)
        assert isinstance(here, Prepared)
        assert (isolated.views[0].pixels == here.views[0].pixels).all()
        assert isolated.views[0].crop == here.views[0].crop
    child = decoder._child
    decoder.close()
    assert child is not None
    assert not psutil.pid_exists(child.pid), "the child ends with its decoder"


@pytest.mark.parametrize("mode", ["exact", "tensor", "fast"])
def test_libraries_of_the_child_take_nothing_of_the_samples_memory(mode: DecodeMode) -> None:
    image = ImageConfig(size=32, decode=mode)
    decoder = IsolatedDecoder(image, 0, SelectConfig(), seconds=30.0, memory_bytes=128 << 20)
    isolated, here = decoder("k", sample(0, 0)), prepare_sample("k", sample(0, 0), image)
    decoder.close()
    assert isinstance(isolated, Prepared), isolated
    assert isinstance(here, Prepared)
    assert (isolated.views[0].pixels == here.views[0].pixels).all()


@pytest.mark.parametrize(
    ("kind", "reason", "says"),
    [
        ("crash", "crashed", "SIGSEGV"),
        ("hang", "crashed", "no answer within 6 s"),
        ("memory", "crashed", "exit code 1"),
    ],
)
def test_poison_costs_itself_only(poisoned: IsolatedDecoder, kind: str, reason: str, says: str) -> None:
    answer = poisoned("k", {**sample(0, 0), "poison": POISON[kind].encode()})
    assert isinstance(answer, Reject)
    assert (answer.stage, answer.reason) == ("decode", reason)
    assert says in answer.detail
    assert isinstance(poisoned("k", sample(0, 1)), Prepared), "the next sample gets a new child"


def test_bad_image_is_an_ordinary_reject(poisoned: IsolatedDecoder) -> None:
    answer = poisoned("k", {"jpg": b"junk"})
    assert isinstance(answer, Reject)
    assert answer.reason == "not_image"


def test_image_of_an_unwanted_size_is_filtered() -> None:
    decoder = IsolatedDecoder(IMAGE, 0, SelectConfig(min_side=500), seconds=30.0, memory_bytes=4 << 30)
    assert decoder("k", sample(0, 0)) == Filtered("min_side 500")
    decoder.close()


def test_child_that_cannot_start_blames_no_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(OSError, match="does not start"):
        IsolatedDecoder(IMAGE, 0, SelectConfig(), seconds=3.0, memory_bytes=4 << 30)("k", sample(0, 0))


def test_child_that_lacks_torch_blames_no_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('failed to map segment from shared object')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parent.parent}")
    decoder = IsolatedDecoder(ImageConfig(size=32, decode="tensor"), 0, SelectConfig(), 3.0, 4 << 30)
    with pytest.raises(OSError, match="does not start"):
        decoder("k", sample(0, 0))
