"""What is found out about a draft, and how it comes back from the store."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.engine import Engine
from pipeline.errors import NotFound, Reject, Stage, UsageError
from pipeline.qa.evidence import (
    SAMPLE_SCHEMA,
    Evidence,
    evidence_url,
    mean_psnr,
    publish_evidence,
    read_evidence,
    read_report,
)
from pipeline.qa.inspect import inspect_shard
from pipeline.qa.sampling import Sampler
from pipeline.qa.statistics import entropy, psnr
from pipeline.storage import Storage
from pipeline.tokens.schema import ColumnsConfig, Counts, PartFooter, RejectedSample
from pipeline.tokens.writer import OutputConfig, PartWriter
from tests.qa.conftest import SIZE
from tests.qa.parts import inspected, photo_crops, report, row, spec_of


@pytest.fixture(scope="module")
def evidence(demo_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return inspected(tmp_path_factory.mktemp("part"), photo_crops(40, SIZE), demo_engine)


def test_samples_are_the_images_and_what_their_tokens_give(evidence: Evidence, demo_engine: Engine) -> None:
    pixels = photo_crops(40, SIZE)
    assert [sample.kind for sample in evidence.samples[:4]] == ["random"] * 4
    assert 4 < len(evidence.samples) <= 6
    for sample in evidence.samples:
        original = pixels[sample.sample_index]
        grid = demo_engine.encode(original[None])
        reconstruction = demo_engine.decode(grid)[0]
        assert sample.psnr == pytest.approx(psnr(original, reconstruction), abs=0.05)
        for stored, exact in ((sample.original, original), (sample.reconstruction, reconstruction)):
            assert psnr(np.asarray(Image.open(io.BytesIO(stored))), exact) > 26, "WebP of quality 85"
        counts = np.bincount(grid.reshape(-1))
        assert (sample.entropy, sample.top_code) == (pytest.approx(entropy(counts)), counts.max() / counts.sum())


def test_tokens_are_decoded_as_they_stand_in_the_part(demo_engine: Engine, tmp_path: Path) -> None:
    """A writer that swaps two grids: what was stored shows, not what was meant."""
    pixels = photo_crops(2, SIZE)
    tokens, rows, counts = demo_engine.encode(pixels), [row(0), row(1)], Counts(2, 2, 2, 0)
    swapped = tokens[::-1].copy()
    footer = PartFooter("f" * 64, {"id": "a", "url": "a.tar"}, demo_engine.spec, counts)
    sampler = Sampler(2, 1024)
    sampler.add(rows, pixels, tokens)
    with PartWriter(tmp_path / "a", demo_engine.spec, ColumnsConfig(), "a.tar", OutputConfig()) as writer:
        writer.add(rows, swapped)
        writer.finish(footer)
    decoded = demo_engine.decode(swapped)
    for sample in inspect_shard(tmp_path / "a", footer, sampler, demo_engine).samples:
        expected = psnr(pixels[sample.sample_index], decoded[sample.sample_index])
        assert sample.psnr == pytest.approx(expected, abs=0.05)
        assert expected < 15


def test_report_sums_all_rows(evidence: Evidence, demo_engine: Engine) -> None:
    found, drawn = evidence.report, evidence.samples[:4]
    tokens = np.concatenate([demo_engine.encode(photo_crops(40, SIZE)[i : i + 16]) for i in (0, 16, 32)])
    assert np.array_equal(found.histogram, np.bincount(tokens.reshape(-1), minlength=1024))
    assert (found.counts.rows, found.duplicate_grids, found.constant_grids, found.out_of_range) == (40, 0, 0, 0)
    assert (found.sizes, found.aspects) == ({"362": 40}, {"0.25": 40})
    assert found.psnr == pytest.approx(np.mean([sample.psnr for sample in drawn]))
    assert found.ssim == pytest.approx(np.mean([sample.ssim for sample in drawn]))
    assert (found.lpips, list(found.not_computed)) == (None, ["lpips", "rfid"])
    assert 0 < found.split_divergence < 0.5


def test_evidence_comes_back_from_the_store(evidence: Evidence, tmp_path: Path) -> None:
    storage, output = Storage(), str(tmp_path / "out")
    publish_evidence(storage, output, evidence, tmp_path)
    back = read_evidence(storage, evidence_url(output, "a"))
    assert back.report == evidence.report == read_report(storage, evidence_url(output, "a"))
    for found, sample in zip(back.samples, evidence.samples, strict=True):
        assert (found.key, found.original, found.kind) == (sample.key, sample.original, sample.kind)
        assert found.ssim == pytest.approx(sample.ssim)
    table = pq.read_table(tmp_path / "out" / "qa" / "a.parquet")
    assert (table.schema.names, table.schema.types) == (SAMPLE_SCHEMA.names, SAMPLE_SCHEMA.types)


def test_evidence_of_equal_work_is_equal(evidence: Evidence, demo_engine: Engine, tmp_path: Path) -> None:
    assert inspected(tmp_path, photo_crops(40, SIZE), demo_engine) == evidence


def test_other_files_are_no_evidence(tmp_path: Path) -> None:
    pq.write_table(SAMPLE_SCHEMA.empty_table(), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="no QA evidence"):
        read_report(Storage(), str(tmp_path / "x.parquet"))
    with pytest.raises(NotFound):
        read_evidence(Storage(), str(tmp_path / "y.parquet"))


def test_shard_without_rows(demo_engine: Engine, tmp_path: Path) -> None:
    rejects = [
        RejectedSample("k", 0, Reject(Stage.DECODE, "truncated")),
        RejectedSample("l", 1, Reject(Stage.READ, "empty")),
    ]
    footer = PartFooter("f" * 64, {"id": "a", "url": "a.tar"}, demo_engine.spec, Counts(2, 0, 0, 2), rejects)
    with PartWriter(tmp_path / "a", demo_engine.spec, ColumnsConfig(), "a.tar", OutputConfig()) as writer:
        writer.finish(footer)
    found = inspect_shard(tmp_path / "a", footer, Sampler(4, 1024), demo_engine)
    publish_evidence(Storage(), str(tmp_path), found, tmp_path)
    assert read_evidence(Storage(), evidence_url(str(tmp_path), "a")) == found
    assert (found.samples, found.report.psnr, found.report.split_divergence) == ([], None, None)
    assert found.report.rejects_by_reason == {"truncated": 1, "empty": 1}


def test_tokens_outside_the_codebook_are_reported_and_not_decoded(demo_engine: Engine, tmp_path: Path) -> None:
    wide = spec_of(2048, 12)
    written = PartFooter("f" * 64, {"id": "a", "url": "a.tar"}, wide, Counts(1, 1, 1, 0))
    with PartWriter(tmp_path / "a", wide, ColumnsConfig(), "a.tar", OutputConfig()) as writer:
        writer.add([row(0)], np.full((1, 12, 12), 2000))
        writer.finish(written)
    footer = PartFooter("f" * 64, {"id": "a", "url": "a.tar"}, demo_engine.spec, written.counts)
    sampler = Sampler(4, 1024)
    sampler.add([row(0)], np.zeros((1, SIZE, SIZE, 3), np.uint8), np.zeros((1, 12, 12), np.int64))
    found = inspect_shard(tmp_path / "a", footer, sampler, demo_engine)
    assert (found.report.out_of_range, found.samples) == (144, [])


def test_baseline_is_read_from_the_summary_or_the_evidence(evidence: Evidence, tmp_path: Path) -> None:
    output = str(tmp_path)
    with pytest.raises(UsageError, match=r"qa\.baseline must be an OUTPUT with QA evidence"):
        mean_psnr(Storage(), output)
    for name, value in (("a", 20.0), ("b", 24.0), ("c", None)):
        one = Evidence(report(name, psnr=value), evidence.samples)
        publish_evidence(Storage(), output, one, tmp_path)
    (tmp_path / "summary.json").write_text('{"samples": 3}')
    assert mean_psnr(Storage(), output) == 22.0
    (tmp_path / "summary.json").write_text('{"qa": {"psnr": 25.5}}')
    assert mean_psnr(Storage(), output) == 25.5
