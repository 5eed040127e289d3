"""A shard of any size streams at a fixed memory budget.

The shard is a tar that is never on disk. STREAM_GIB=100 streams that much; the default is what CI has time for.
"""

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.storage import reading
from tests.support.commands import ROOT, environment
from tests.support.synthetic import STRIDE, SyntheticTar, payload, synthetic_store

pytestmark = pytest.mark.system

GIB = float(os.environ.get("STREAM_GIB", "1"))
# What is fetched ahead, the block being read, its pieces on the way through aiohttp and the tar reader.
BUDGET_MIB = 3 * (reading.BLOCKS_AHEAD + 1) * (reading.BLOCK_BYTES >> 20)
READER = """
import json, sys
from pipeline.shards.tar import TarReader
from pipeline.storage import Storage, StorageConfig
from tests.support.memory import peak_bytes
from tests.support.synthetic import payload

storage = Storage(StorageConfig(options={"endpoint_url": sys.argv[1], "anon": True}))
blob = storage.stat("s3://any/tar")
before, samples = peak_bytes(), 0
with storage.stream(blob) as stream:
    for samples, sample in enumerate(TarReader(stream, url=blob.url, size=blob.size), 1):
        assert sample.members == {"bin": payload(samples - 1)}, samples
print(json.dumps({"samples": samples, "mib": peak_bytes() - before >> 20}))
"""


def read_in_a_process(endpoint: str) -> dict[str, int]:
    """Samples read and verified, and by how many MiB the process grew for it."""
    command = [sys.executable, "-c", READER, endpoint]
    timeout = 120 + 60 * GIB
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, cwd=ROOT, env=environment(), check=False
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.timeout(600 + 60 * GIB)
def test_memory_does_not_grow_with_the_shard(record_property: Callable[[str, object], None]) -> None:
    small, large = SyntheticTar(256), SyntheticTar(round(GIB * (1 << 30) / STRIDE))
    with synthetic_store(small) as endpoint:
        first = read_in_a_process(endpoint)
    with synthetic_store(large) as endpoint:
        second = read_in_a_process(endpoint)
    record_property("grew by", {"256 MiB": first["mib"], f"{GIB:g} GiB": second["mib"]})
    assert (first["samples"], second["samples"]) == (small.samples, large.samples)
    assert 0 < first["mib"] < BUDGET_MIB
    assert 0 < second["mib"] < BUDGET_MIB, f"{first} for 256 MiB, {second} for {GIB} GiB"


def test_synthetic_tar_is_one(tmp_path: Path) -> None:
    tar = SyntheticTar(3)
    (tmp_path / "a.tar").write_bytes(tar.read(0, tar.size))
    with tarfile.open(tmp_path / "a.tar") as file:
        assert [file.extractfile(one).read() for one in file] == [payload(0), payload(1), payload(2)]
    assert tar.read(STRIDE - 100, 1000) == tar.read(0, tar.size)[STRIDE - 100 : STRIDE + 900]
