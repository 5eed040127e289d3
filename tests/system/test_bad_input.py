"""What a user reads when the input is bad, and what the exit code says."""

from pathlib import Path

import pytest

from pipeline.shards.manifest import shard_id
from pipeline.storage import Storage
from tests.support.commands import last_json, parts, tokenmill
from tests.support.corpora import sample, write_corpus, write_shard

pytestmark = pytest.mark.system
QUICK = ["--set", "image.size=32", "--set", "limits.backoff_seconds=0.05"]


def test_bad_shards_are_quarantined_and_bad_samples_rejected(tmp_path: Path, tiny_model: Path) -> None:
    corpus, output = write_corpus(tmp_path / "in", shards=3, samples=30), tmp_path / "out"
    samples = {f"c{i}": sample(7, i) for i in range(30)}
    samples["c3"]["jpg"], samples["c9"]["jpg"] = b"not an image", samples["c9"]["jpg"][:-20]
    write_shard(corpus / "00003.tar", samples)
    cut = corpus / "00001.tar"
    cut.write_bytes(cut.read_bytes()[:20_000])
    spec = f"{corpus}/{{00000..00004}}.tar"
    command = ["run", "--shards", spec, "--model", tiny_model, "--output", output, *QUICK, "--json"]
    result = tokenmill(*command)
    assert result.returncode == 3, result.stderr
    summary = last_json(result)
    assert summary["shards"] == {"total": 5, "committed": 3, "quarantined": 2}
    assert summary["rejects_by_reason"] == {"not_image": 1, "truncated": 1}
    assert (summary["samples"], summary["rows"]) == (90, 88)
    reasons = {Path(bad["shard"]).name: (bad["reason"], bad["message"]) for bad in summary["quarantined"]}
    assert reasons["00001.tar"][0] == "truncated"
    assert reasons["00004.tar"][0] == "missing"
    assert "no such object" in reasons["00004.tar"][1]
    assert "attempt 3 failed, quarantined" in result.stderr
    assert not (output / "_SUCCESS").exists()
    check_that_mending_finishes_the_run(corpus, output, command)


def check_that_mending_finishes_the_run(corpus: Path, output: Path, command: list) -> None:
    verified = tokenmill("verify", output, "--json")
    assert verified.returncode == 3
    assert {finding["kind"] for finding in last_json(verified)["findings"]} == {"missing_part"}
    write_shard(corpus / "00004.tar", {f"e{i}": sample(9, i) for i in range(5)})
    again = tokenmill(*command)
    assert again.returncode == 3, "the truncated shard is still there, and still named"
    assert last_json(again)["shards"] == {"total": 5, "committed": 4, "quarantined": 1}
    assert "attempt" not in again.stderr, "what an earlier run gave up is not tried again unasked"
    write_corpus(corpus, shards=2, samples=30)
    mended = tokenmill(*command, "--retry-quarantined")
    assert mended.returncode == 0, mended.stderr
    assert last_json(mended)["shards"] == {"total": 5, "committed": 5, "quarantined": 0}
    assert tokenmill("verify", output, "--quick").returncode == 0


def test_too_many_rejects_fail_the_run(tmp_path: Path, tiny_model: Path) -> None:
    samples = {f"c{i}": {"jpg": b"not an image"} if i % 5 < 2 else sample(0, i) for i in range(30)}
    shard = write_shard(tmp_path / "x.tar", samples)
    result = tokenmill("run", "--shards", shard, "--model", tiny_model, "--output", tmp_path / "out", *QUICK)
    assert result.returncode == 3
    assert "40.0% of the samples were rejected (limits.max_reject_fraction is 10.0%): 12 not_image" in result.stdout


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda model: (model / "config.json").write_text("{"), "config.json"),
        (lambda model: (model / "diffusion_pytorch_model.safetensors").write_bytes(b"x" * 100), "safetensors"),
    ],
)
def test_unreadable_model_is_a_usage_error(tmp_path: Path, tiny_model: Path, corpus: Path, break_it, says: str) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in tiny_model.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    break_it(model)
    result = tokenmill("run", "--shards", corpus, "--model", model, "--output", tmp_path / "out", *QUICK)
    assert result.returncode == 2, result.stderr
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert not parts(tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run"], "the job names no shards and no model and no output"),
        (["run", "--set", "image.sise=3"], "did you mean 'image.size'?"),
        (["run", "--shards", "pipe:cat x", "--model", "m", "--output", "o"], "m"),
        (["run", "--outptu", "x"], "--output"),
        (["run", "no-such.yaml"], "no-such.yaml"),
        (["status", "no-such-output"], "no run here"),
        (["verify", "no-such-output"], "no-such-output"),
    ],
)
def test_wrong_commands_say_what_to_do(arguments: list[str], says: str, tmp_path: Path) -> None:
    result = tokenmill(*arguments, COLUMNS="200")
    assert result.returncode == 2
    assert says in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("finished", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_foreign_object_under_a_parts_name_stops_the_run(
    tmp_path: Path, tiny_model: Path, corpus: Path, finished: bool
) -> None:
    output = tmp_path / "out"
    command = ["run", "--shards", corpus / "{00000..00001}.tar", "--model", tiny_model, "--output", output, *QUICK]
    if finished:
        assert tokenmill(*command).returncode == 0
    taken = output / "tokens" / f"{shard_id(str(corpus / '00000.tar'))}.parquet"
    Storage().write(str(taken), b"something else")
    result = tokenmill(*command)
    assert result.returncode == 2, result.stdout
    assert f"{taken}: not a part of Tokenmill" in result.stderr
    assert taken.read_bytes() == b"something else"
    assert not (output / "_SUCCESS").exists() or finished
