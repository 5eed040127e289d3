"""rFID: the distance itself, and its way from the images through the evidence into the report."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy.linalg import sqrtm

from pipeline.engine import Engine
from pipeline.qa.config import QaConfig
from pipeline.qa.evidence import Evidence, evidence_url, publish_evidence, read_evidence
from pipeline.qa.networks import Networks, load_networks
from pipeline.qa.report import make_report
from pipeline.qa.report.frechet import Moments, frechet_distance
from pipeline.storage import Storage
from tests.qa.conftest import SIZE
from tests.qa.parts import inspected, photo_crops
from tests.qa.test_report import NOW
from tests.support.evidence_files import FINGERPRINT, RunCase, ShardCase, healthy
from tests.support.networks import Colours, save_script

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
FEATURES, SHARDS, SAMPLES = 6, 3, 4  # of `Colours`; SAMPLES random ones per shard


def moments(features: np.ndarray, lot: int = 7) -> Moments:
    found = Moments(features.shape[1])
    for start in range(0, len(features), lot):
        found.add(features[start : start + lot])
    return found


def cloud(seed: int, *, count: int, width: int, mean: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return mean + rng.normal(size=(count, width)) @ rng.normal(size=(width, width))


@pytest.mark.parametrize(("count", "width"), [(400, 1), (400, 16), (90, 64), (20, 32)])
def test_distance_is_that_of_scipys_matrix_root(count: int, width: int) -> None:
    first, second = cloud(0, count=count, width=width), cloud(1, count=count, width=width, mean=0.5)
    one, two = (np.cov(x, rowvar=False).reshape(width, width) for x in (first, second))
    root = np.trace(np.real(sqrtm(one @ two)))
    expected = ((first.mean(0) - second.mean(0)) ** 2).sum() + np.trace(one) + np.trace(two) - 2 * root
    assert frechet_distance(moments(first), moments(second)) == pytest.approx(expected, rel=1e-4)


def test_moments_are_numpys() -> None:
    features = cloud(2, count=50, width=5, mean=3.0)
    found = moments(features)
    assert np.allclose(found.mean(), features.mean(0))
    assert np.allclose(found.covariance(), np.cov(features, rowvar=False))


def test_distance_of_gaussians_with_independent_features() -> None:
    """In closed form: |m1 - m2|^2 + sum (s1 - s2)^2, for independent features with spreads s."""
    corners = (
        np.array(np.meshgrid([-1.0, 1.0], [-1.0, 1.0], [-1.0, 1.0])).reshape(3, 8).T
    )  # spreads equal, no covariance
    unit = corners / np.sqrt(np.cov(corners, rowvar=False)[0, 0])
    first, second = unit * [1, 2, 3] + [0, 0, 1], unit * [4, 2, 1] + [3, 0, -1]
    assert frechet_distance(moments(first), moments(second)) == pytest.approx((9 + 0 + 4) + (9 + 0 + 4))
    assert frechet_distance(moments(first), moments(first)) == pytest.approx(0, abs=1e-9)


# --- in the report ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    script = save_script(tmp_path_factory.mktemp("inception") / "colours.pt", Colours())
    return load_networks(QaConfig(**script), torch.device("cpu"), SIZE)


@pytest.fixture(scope="module")
def judged(networks: Networks, demo_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> list[Evidence]:
    folder = tmp_path_factory.mktemp("parts")
    return [inspected(folder, photo_crops(12, SIZE, seed=s), demo_engine, networks=networks) for s in range(SHARDS)]


def publish(output: Path, judged: list[Evidence], weight_files: dict[int, Any] | None = None) -> Path:
    """A run whose evidence is `judged`; some of it from other weight files."""
    shards = [ShardCase(f"{number:05d}", rows=12) for number in range(len(judged))]
    RunCase(shards, codes=1024).write(output)
    for number, (shard, one) in enumerate(zip(shards, judged, strict=True)):
        files = (weight_files or {}).get(number, one.report.weight_files)
        shown = {"id": shard.id, "url": shard.url}
        report = replace(one.report, fingerprint=FINGERPRINT, shard=shown, weight_files=files)
        publish_evidence(Storage(), str(output), Evidence(report, one.samples), output)
        assert read_evidence(Storage(), evidence_url(str(output), shard.id)).samples[0].original_features is not None
    return output


def test_distance_travels_from_the_images_into_the_report(judged: list[Evidence], tmp_path: Path) -> None:
    made = make_report(Storage(), str(publish(tmp_path / "run", judged)), now=NOW)
    random = [sample for one in judged for sample in one.samples if sample.kind == "random"]
    expected = frechet_distance(
        moments(np.array([sample.original_features for sample in random])),
        moments(np.array([sample.reconstruction_features for sample in random])),
    )
    found = made.document["runs"][0]["rfid"]
    assert found["value"] == pytest.approx(expected, rel=1e-4)
    assert found["value"] > 0
    assert (found["images"], found["shards"], found["features"]) == (SHARDS * SAMPLES, SHARDS, FEATURES)
    row = made.page.partition(">rFID</th>")[2].partition("</tr>")[0]
    assert "too high for want of images: 10,000 are advised" in row
    assert f'<td class="n">{SHARDS * SAMPLES}</td>' in row, "N is told"
    assert "weights of rfid" in made.page


@pytest.mark.parametrize(
    ("shards", "weight_files", "remark"),
    [
        (1, {}, "not computed: 6 features need more than 6 images (qa.samples_per_shard)"),
        (3, {1: {"rfid": "f" * 64}}, "not computed: the features are of 2 different networks"),
    ],
)
def test_features_that_tell_no_distance(
    shards: int, weight_files: dict[int, Any], remark: str, judged: list[Evidence], tmp_path: Path
) -> None:
    output = publish(tmp_path / "run", judged[:shards], weight_files)
    made = make_report(Storage(), str(output), now=NOW)
    assert made.document["runs"][0]["rfid"]["value"] is None
    assert remark in made.page


def test_shards_without_features_or_with_damaged_ones_do_not_count(judged: list[Evidence], tmp_path: Path) -> None:
    output = publish(tmp_path / "run", judged, {0: {}})
    path = sorted((output / "qa").iterdir())[2]
    table = pq.read_table(path)
    narrow = table["original_features"].combine_chunks().fill_null([0.0])
    pq.write_table(table.set_column(table.schema.get_field_index("original_features"), "other", narrow), path)
    found = make_report(Storage(), str(output), now=NOW).document["runs"][0]
    assert (found["rfid"]["shards"], found["rfid"]["images"], found["rfid"]["value"]) == (1, SAMPLES, None)
    assert found["coverage"]["read"] == SHARDS, "its numbers could be read"


def test_evidence_of_earlier_versions_has_no_features(tmp_path: Path) -> None:
    output = healthy().write(tmp_path / "run")
    made = make_report(Storage(), str(output), now=NOW)
    assert made.document["runs"][0]["rfid"] is None
    assert "not computed" in made.page.partition(">rFID</th>")[2].partition("</tr>")[0]
    samples = read_evidence(Storage(), f"{output}/qa/{healthy().shards[0].id}.parquet").samples
    assert {sample.original_features for sample in samples} == {None}
