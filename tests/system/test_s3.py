"""The whole job on a real S3 server: shards, model and output, under names that a URL or a glob may misread."""

import pyarrow.parquet as pq
import pytest

from pipeline.storage import Storage
from tests.support.commands import kill_tree, last_json, start, tokenmill, wait_until
from tests.support.s3 import S3
from tests.system.conftest import SHARDS, Case

pytestmark = pytest.mark.system


def test_run_resume_and_verify_on_s3(case: Case, s3: S3, tmp_path) -> None:
    url, storage = s3.make_bucket("whole-job"), Storage()
    folder = f"{url}/in & #1"
    for shard in case.shards.iterdir():
        storage.put(f"{folder}/{shard.stem} a+b%20c?d*[1]#ü.tar", shard)
    for file in case.model.iterdir():
        storage.put(f"{url}/model/{file.name}", file)
    command = ["run", "--shards", folder, "--model", f"{url}/model", "--output", f"{url}/out", "--set", "image.size=64"]
    process = start(*command, **s3.environment)
    wait_until(lambda: len(storage.list_folder(f"{url}/out/tokens")) >= 2, process)
    kill_tree(process)
    survived = {blob.url: blob.etag for blob in storage.list_folder(f"{url}/out/tokens")}
    assert 2 <= len(survived) < SHARDS
    result = tokenmill(*command, "--json", **s3.environment)
    assert result.returncode == 0, result.stderr
    assert last_json(result)["shards"] == {"total": SHARDS, "committed": SHARDS, "quarantined": 0}
    now = {blob.url: blob.etag for blob in storage.list_folder(f"{url}/out/tokens")}
    assert survived.items() <= now.items()
    checked = tokenmill("verify", f"{url}/out", **s3.environment)
    assert checked.returncode == 0, checked.stdout
    compare_with_local_run(case, storage, now)


def compare_with_local_run(case: Case, storage: Storage, remote: dict[str, str | None]) -> None:
    """Apart from the shard's URL the rows are those of the run on local disk."""
    local = {path.name[:5]: pq.read_table(path).drop(["shard"]) for path in case.output.glob("tokens/*")}
    for url in remote:
        with storage.open_random(url) as file:
            assert pq.read_table(file).drop(["shard"]) == local[url.rpartition("/")[2][:5]]
