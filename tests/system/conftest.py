"""A corpus of web-like images, and an undisturbed run of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.shards.corpus import CorpusConfig, make_corpus
from tests.support.commands import ROOT, parts, tokenmill

SHARDS, SAMPLES = 8, 120


@dataclass(frozen=True)
class Case:
    """What a run is given, and what it makes when nothing disturbs it."""

    shards: Path
    model: Path
    output: Path
    parts: dict[str, str]

    def arguments(self, output: Path, *more: object) -> list[object]:
        """`run` on the same shards into another output."""
        where = ["--shards", self.shards, "--model", self.model, "--output", output]
        return ["run", *where, "--set", "image.size=64", *more]


@pytest.fixture(scope="session")
def case(made_once: Callable[[str, Callable[[Path], object]], Path], tiny_model: Path) -> Case:
    """8 shards x 120 web-like images, tokenized once by one actor."""

    def make(folder: Path) -> None:
        photos = ROOT / "jobs" / "assets" / "photos"
        make_corpus(photos, folder / "shards", CorpusConfig(shards=SHARDS, samples=SAMPLES, min_side=96, max_side=400))
        case = Case(folder / "shards", tiny_model, folder / "output", {})
        result = tokenmill(*case.arguments(case.output))
        assert result.returncode == 0, result.stderr

    folder = made_once("case", make)
    return Case(folder / "shards", tiny_model, folder / "output", parts(folder / "output"))
