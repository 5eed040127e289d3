"""What a run leaves in OUTPUT, and what is derived from it."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.config import JobConfig, job_document
from pipeline.encoding import Precision
from pipeline.errors import FingerprintMismatch, UsageError
from pipeline.messages import Identity
from pipeline.output import Output
from pipeline.shards.manifest import Shard, freeze, shard_id
from pipeline.storage import Storage
from pipeline.tokenize_shard import tokenize_shard
from pipeline.tokens.schema import TokenSpec
from tests.support.corpora import sample, write_corpus, write_shard
from tests.support.lines import production_line


def job(weights: str = "w1", **image: object) -> dict:
    config = JobConfig(shards=["x.tar"], model="m", output="o", image={"size": 32, **image})
    found = Identity(weights, {"latent_channels": 4}, TokenSpec(64, 8, 8), "pillow-13")
    return job_document(config, found, None, Precision.EXACT, 8)


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Output(Storage(), str(tmp_path / "out"))


def test_first_claim_wins_and_the_same_job_agrees(output: Output) -> None:
    first = output.claim(job())
    assert output.claim(job()) == json.loads(json.dumps(first))
    assert output.job() == json.loads(json.dumps(first))


def test_tuning_does_not_change_the_fingerprint() -> None:
    tuned = JobConfig(
        shards=["y.tar"],
        model={"path": "elsewhere", "batch_size": 64},
        output={"url": "p", "row_group_rows": 10},
        image={"size": 32},
        cluster={"actors": 8},
        limits={"max_attempts": 9},
    )
    found = Identity("w1", {"latent_channels": 4}, TokenSpec(64, 8, 8), "pillow-13")
    assert job_document(tuned, found, None, Precision.EXACT, 64)["fingerprint"] == job()["fingerprint"]


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (job("w2"), "weights: w1 there, w2 here"),
        (job(recipe="pad"), "image.recipe: center-crop there, pad here"),
        (job(max_pixels=1000), "image.max_pixels"),
    ],
)
def test_another_identity_is_refused_with_what_differs(output: Output, other: dict, says: str) -> None:
    output.claim(job())
    with pytest.raises(FingerprintMismatch, match="must not mix two") as error:
        output.claim(other)
    assert says in str(error.value)


def test_damaged_job_file(output: Output) -> None:
    Storage().write(f"{output.url}/job.json", b"{}")
    with pytest.raises(UsageError, match=r"job.json is damaged"):
        output.claim(job())


def test_manifest_keeps_what_was_frozen_and_takes_what_is_new(output: Output) -> None:
    a, b, missing = (
        Shard("a", "file:///a.tar", 1, "x"),
        Shard("b", "file:///b.tar", 2, "y"),
        Shard("c", "file:///c.tar", None, None),
    )
    assert output.extend_manifest([a, missing]) == [a, missing]
    changed, found = Shard("a", "file:///a.tar", 9, "z"), Shard("c", "file:///c.tar", 3, "w")
    assert output.extend_manifest([changed, b, found], {"c"}) == [a, b, found]
    assert output.manifest() == [a, b, found]


def test_accounts_are_rebuilt_from_the_parts(tmp_path: Path, output: Output, tiny_model: Path) -> None:
    corpus = write_corpus(tmp_path / "in", shards=2, samples=4)
    write_shard(corpus / "bad.tar", {"k0": sample(0, 0), "k1": {"jpg": b"junk", "txt": b"x"}})
    manifest = freeze(Storage(), [str(corpus)])
    output.claim(job())
    output.extend_manifest(manifest)
    with production_line(tiny_model, output.url, fingerprint=job()["fingerprint"]) as line:
        for shard in manifest:
            tokenize_shard(shard, line)
    summary = output.summarise(manifest, {shard_id(str(corpus / "00000.tar")): {"reason": "r", "message": "m"}})
    assert (summary["samples"], summary["tokenized"], summary["rows"], summary["rejects"]) == (10, 9, 9, 1)
    assert summary["quarantined"] == [{"shard": f"file://{corpus}/00000.tar", "reason": "r", "message": "m"}]
    rejects = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    assert [(r["key"], r["stage"], r["reason"]) for r in rejects] == [("k1", "decode", "not_image")]
    state = output.state()
    assert state["quarantined"] == [], "a shard with a part is not quarantined, whatever an old summary says"
    assert (state["rows"], state["success"]) == (9, False)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "9 rows of 8 x 8 tokens (codes 0 to 63)" in card


def test_accounts_that_are_given_up(tmp_path: Path, output: Output, corpus: Path, tiny_model: Path) -> None:
    manifest = freeze(Storage(), [str(corpus)])
    with production_line(tiny_model, output.url) as line:
        for shard in manifest:
            tokenize_shard(shard, line)
    counted, before = [], sorted((tmp_path / "out").iterdir())

    def give_up(done: int, total: int) -> None:
        counted.append((done, total))
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        output.summarise(manifest, {}, on_part=give_up)
    assert counted == [(1, 4), (2, 4), (3, 4)]
    assert sorted((tmp_path / "out").iterdir()) == before, "nothing is written"


def test_status_of_nothing(output: Output) -> None:
    with pytest.raises(UsageError, match="no run here"):
        output.state()
