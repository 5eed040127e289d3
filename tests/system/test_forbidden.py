"""A shard that the store does not let us read costs this shard, and nothing else."""

from pathlib import Path

import pytest

from pipeline.storage import Storage
from tests.support.commands import last_json, tokenmill
from tests.support.corpora import write_corpus
from tests.support.fault_proxy import Fault, Request, fault_proxy
from tests.support.s3 import S3

pytestmark = pytest.mark.system

SHARDS = 5


def forbidden(request: Request) -> Fault | None:
    """A plan: one object may be listed, but not read."""
    return Fault.FORBIDDEN if request.path.startswith("/forbidden/in/00002.tar") else None


def test_run_with_a_forbidden_shard(s3: S3, tiny_model: Path, tmp_path: Path) -> None:
    bucket = s3.make_bucket("forbidden")
    for shard in write_corpus(tmp_path / "in", shards=SHARDS, samples=2).iterdir():
        Storage().put(f"{bucket}/in/{shard.name}", shard)
    where = ["--shards", f"{bucket}/in/*.tar", "--model", tiny_model, "--output", f"{bucket}/out"]
    with fault_proxy(s3.endpoint, forbidden) as proxy:
        settings = [
            "image.size=32",
            "limits.backoff_seconds=0.05",
            f"storage.options={{endpoint_url: '{proxy.endpoint}'}}",
        ]
        flags = [flag for setting in settings for flag in ("--set", setting)]
        result = tokenmill("run", *where, *flags, "--json", **s3.environment)
    assert result.returncode == 3, result.stderr
    assert proxy.faults[Fault.FORBIDDEN] >= 1
    summary = last_json(result)
    assert summary["shards"] == {"total": SHARDS, "committed": SHARDS - 1, "quarantined": 1}
    (lost,) = summary["quarantined"]
    assert (lost["shard"], lost["reason"]) == (f"{bucket}/in/00002.tar", "forbidden")
    names = [blob.url.rpartition("/")[2][:5] for blob in Storage().list_folder(f"{bucket}/out/tokens")]
    assert names == ["00000", "00001", "00003", "00004"]
