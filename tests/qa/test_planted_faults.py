"""Faults planted into a healthy corpus: each is caught by the gate that is meant for it, wherever it comes.

Wrong checkpoints, changed preprocessing on every device and broken devices are caught before the first shard: those are
in `test_golden`.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.engine import Engine
from pipeline.qa.config import QaConfig
from pipeline.qa.evidence import QaReport
from pipeline.qa.gates import RUN, Gate, Gates
from tests.qa.conftest import SAMPLES, SIZE
from tests.qa.parts import FaultyEngine, inspected, photo_crops

BAD = "s3://corpus/bad.tar"
BAD_SAMPLES = 128  # BGR looks much like RGB: of ten shards of 48 crops seven were found, of 128 crops all
Fault = Callable[[np.ndarray], np.ndarray]


def judged(reports: list[QaReport]) -> set[tuple[Gate, str]]:
    gates = Gates(QaConfig(), baseline=24.0)
    for report in reports:
        gates.shard(report)
    return {(finding.gate, finding.where) for finding in gates.findings}


def wherever_it_comes(bad: QaReport, healthy: list[QaReport]) -> list[set[tuple[Gate, str]]]:
    return [judged([*healthy[:place], bad, *healthy[place:]]) for place in (0, 4, len(healthy))]


def placeholders(pixels: np.ndarray) -> np.ndarray:
    """Every second image is the same "not available"."""
    return np.where((np.arange(len(pixels)) % 2 == 0)[:, None, None, None], pixels[:1], pixels)


def blanks(pixels: np.ndarray) -> np.ndarray:
    """A quarter of the images is blank, each of another colour."""
    colours = np.random.default_rng(0).integers(0, 256, (len(pixels), 1, 1, 3), np.uint8)
    return np.where((np.arange(len(pixels)) % 4 == 0)[:, None, None, None], colours, pixels)


def bgr(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels[..., ::-1])


def squeezed(pixels: np.ndarray) -> np.ndarray:
    """[0, 1] where the model wants [-1, 1]."""
    return pixels // 2 + 128


def test_healthy_corpus_passes_all_gates(healthy_reports: list[QaReport]) -> None:
    assert judged(healthy_reports) == set()
    assert all(report.psnr and report.psnr > 18 for report in healthy_reports)


@pytest.mark.parametrize(
    ("fault", "seed", "meant"),
    [
        (placeholders, 99, Gate.DUPLICATES),
        (blanks, 99, Gate.CONSTANTS),
        (bgr, 98, Gate.DIVERGENCE),
        (bgr, 99, Gate.DIVERGENCE),
        (squeezed, 99, Gate.DIVERGENCE),
    ],
)
def test_shard_of_wrong_pixels_is_caught(
    tmp_path: Path, demo_engine: Engine, healthy_reports: list[QaReport], fault: Fault, seed: int, meant: Gate
) -> None:
    bad = inspected(tmp_path, fault(photo_crops(BAD_SAMPLES, SIZE, seed=seed)), demo_engine, name="bad").report
    assert wherever_it_comes(bad, healthy_reports) == [{(meant, BAD)}] * 3


def few_codes(tokens: np.ndarray) -> np.ndarray:
    return tokens % 4


def of_another_image(tokens: np.ndarray) -> np.ndarray:
    return np.roll(tokens, 1, axis=0)


def flipped_bits(tokens: np.ndarray) -> np.ndarray:
    return tokens ^ 512


@pytest.mark.parametrize(
    ("fault", "meant"),
    [(few_codes, Gate.DIVERGENCE), (flipped_bits, Gate.DIVERGENCE), (of_another_image, Gate.PSNR)],
)
def test_device_that_breaks_in_the_run_is_caught(
    tmp_path: Path, demo_engine: Engine, healthy_reports: list[QaReport], fault: Fault, meant: Gate
) -> None:
    broken = FaultyEngine(demo_engine, fault)
    bad = inspected(tmp_path, photo_crops(SAMPLES, SIZE, seed=99), broken, name="bad").report
    assert broken.fired > SAMPLES
    for found in wherever_it_comes(bad, healthy_reports):
        assert (meant, BAD) in found
        assert {gate for gate, where in found if where == BAD} <= {meant, Gate.PSNR}


def test_collapsed_codebook_is_caught_at_the_first_shard(tmp_path: Path, demo_engine: Engine) -> None:
    broken = FaultyEngine(demo_engine, few_codes)
    bad = inspected(tmp_path, photo_crops(SAMPLES, SIZE), broken).report
    assert broken.fired > SAMPLES
    assert (Gate.COLLAPSE, RUN) in judged([bad])
