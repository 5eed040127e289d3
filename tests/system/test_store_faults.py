"""The whole job against a store that misbehaves: a run completes, or fails by name; no row is ever wrong or missing.

CHAOS=full runs every rate, several seeds, an outage of five minutes, and credentials that live for one; the default is
the short version of `make test`.
"""

import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pipeline.storage import Storage
from tests.support.checker import digests, problems
from tests.support.commands import last_json, tokenmill
from tests.support.corpora import write_corpus
from tests.support.credentials import SECRET, TOKEN, Doorman, issuer
from tests.support.fault_proxy import POSSIBLE, Chance, Fault, FaultProxy, Kind, Outage, Plan, Request, fault_proxy
from tests.support.s3 import S3
from tests.support.stores import moto

pytestmark = pytest.mark.system

FULL = os.environ.get("CHAOS", "short") == "full"
SHARDS = 30  # a request for each at the least: enough for every fault at 5 percent
RATES = [(rate, seed) for rate in (0.01, 0.05, 0.2) for seed in range(3)] if FULL else [(0.05, 0), (0.2, 0)]
OUTAGE_SECONDS = 300.0 if FULL else 5.0
LIFE_SECONDS = 60.0 if FULL else 3.0  # of credentials
ANSWER_SECONDS = 1.5 if FULL else 0.0  # what the store takes for each, so that a run outlives its credentials twice
FAULTS = {fault for faults in POSSIBLE.values() for fault in faults}


@dataclass(frozen=True)
class Remote:
    """A corpus on S3, and what an undisturbed run makes of it."""

    environment: Mapping[str, str]
    corpus: Path
    model: Path
    bucket: str
    undisturbed: dict[str, str]

    def run(self, endpoint: str, output: str, *settings: str) -> subprocess.CompletedProcess[str]:
        """`tokenmill run` of all shards through `endpoint`."""
        words = ["image.size=32", f"storage.options={{endpoint_url: '{endpoint}'}}", "storage.stall_seconds=0.7"]
        words += ["limits.backoff_seconds=0.05", "cluster.actors=1", *settings]
        flags = [flag for word in words for flag in ("--set", word)]
        where = ["--shards", f"{self.bucket}/in/*.tar", "--model", self.model, "--output", f"{self.bucket}/{output}"]
        return tokenmill("run", *where, *flags, "--json", timeout=400 + OUTAGE_SECONDS, **self.environment)

    def problems(self, output: Path) -> list[str]:
        """What an independent recount of a local copy finds."""
        return problems(output, self.corpus, self.undisturbed, place=f"{self.bucket}/in")


@pytest.fixture(scope="module")
def remote(s3: S3, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Remote:
    """30 shards of 2 samples, and an undisturbed run of them."""
    folder, bucket = tmp_path_factory.mktemp("remote"), s3.make_bucket("store-faults")
    corpus = write_corpus(folder / "in", shards=SHARDS, samples=2)
    for shard in corpus.iterdir():
        Storage().put(f"{bucket}/in/{shard.name}", shard)
    bare = Remote(s3.environment, corpus, tiny_model, bucket, {})
    result = bare.run(s3.endpoint, "undisturbed")
    assert result.returncode == 0, result.stderr
    remote = replace(bare, undisturbed=digests(copied(s3, f"{bucket}/undisturbed", folder / "undisturbed")))
    assert remote.problems(folder / "undisturbed") == []
    return remote


def copied(s3: S3, output: str, folder: Path) -> Path:
    """What a run left, on local disk."""
    s3.client().get(f"{output}/", f"{folder}/", recursive=True)
    return folder


@pytest.fixture
def told(record_property: Callable[[str, object], None]) -> Callable[[FaultProxy], None]:
    """Leaves what a proxy did in the test's report."""
    return lambda proxy: record_property("faults", {str(fault): count for fault, count in proxy.faults.items()})


@pytest.mark.parametrize(("rate", "seed"), RATES)
def test_faults_by_chance(s3: S3, remote: Remote, tmp_path: Path, rate: float, seed: int, told: Callable) -> None:
    output = f"chance-{rate}-{seed}"
    with fault_proxy(s3.endpoint, Chance(rate, seed)) as proxy:
        result = remote.run(proxy.endpoint, output)
    told(proxy)
    if rate >= 0.05:
        assert proxy.faults.keys() == FAULTS
        assert proxy.struck.keys() >= {Kind.RANGE, Kind.HEAD, Kind.PUT}
    assert proxy.faults.total() > 0
    if result.returncode != 0 and rate > 0.05:
        assert_named(result)
        assert remote.run(s3.endpoint, output, "limits.max_attempts=3").returncode == 0, "cannot be resumed"
    else:
        assert result.returncode == 0, result.stderr
        assert last_json(result)["shards"] == {"total": SHARDS, "committed": SHARDS, "quarantined": 0}
    assert remote.problems(copied(s3, f"{remote.bucket}/{output}", tmp_path / "copy")) == []


def test_store_that_is_away_for_a_while(s3: S3, remote: Remote, tmp_path: Path, told: Callable) -> None:
    with fault_proxy(s3.endpoint, Outage(OUTAGE_SECONDS, requests=150)) as proxy:
        patience = [f"storage.retry_seconds={2 * OUTAGE_SECONDS}", f"limits.stall_seconds={300 + 2 * OUTAGE_SECONDS}"]
        result = remote.run(proxy.endpoint, "outage", *patience)
    told(proxy)
    assert result.returncode == 0, result.stderr
    assert proxy.faults.keys() == set(Outage.FACES)
    assert remote.problems(copied(s3, f"{remote.bucket}/outage", tmp_path / "copy")) == []


def assert_named(result: subprocess.CompletedProcess[str]) -> None:
    """A run that did not complete says why, in words of this project: no traceback."""
    assert result.returncode in (1, 3), result.stderr
    assert "Traceback" not in result.stderr
    if result.returncode == 3:
        quarantined = Counter(failure["reason"] for failure in last_json(result)["quarantined"])
        assert quarantined.keys() <= {"changed", "storage", "missing", "stalled"}


class Slow:
    """A plan: another one, by a store that takes a while for every answer."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def __call__(self, request: Request) -> Fault | None:
        time.sleep(ANSWER_SECONDS)
        return self._plan(request)


NO_SECOND_ATTEMPT = ("limits.max_attempts=1", "limits.max_infra_failures=1", "storage.stall_seconds=10")


def test_credentials_that_expire_during_a_run(remote: Remote, tmp_path: Path, told: Callable) -> None:
    began = time.monotonic()
    with (
        moto(tmp_path) as server,
        issuer(claimed_seconds=3600) as given,
        fault_proxy(server.endpoint, Slow(doorman := Doorman(given, LIFE_SECONDS))) as proxy,
    ):
        bucket = server.make_bucket(remote.bucket.removeprefix("s3://"))
        server.client().put(f"{remote.corpus}/", f"{bucket}/in/", recursive=True)
        environment = {**server.environment, "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", **given.environment}
        result = replace(remote, environment=environment).run(proxy.endpoint, "expiring", *NO_SECOND_ATTEMPT)
        server.client().get(f"{bucket}/expiring/", f"{tmp_path}/copy/", recursive=True)
    told(proxy)
    assert result.returncode == 0, result.stderr
    assert proxy.faults[Fault.EXPIRED] >= 2, "hardly a request met an expiry"
    assert len(doorman.let_in) >= 3, "not renewed twice"
    assert time.monotonic() - began > 2 * LIFE_SECONDS
    assert last_json(result)["shards"] == {"total": SHARDS, "committed": SHARDS, "quarantined": 0}
    assert remote.problems(tmp_path / "copy") == []
    seen = result.stdout + result.stderr + "".join(str(path.read_bytes()) for path in tmp_path.glob("copy/**/*.*"))
    assert TOKEN not in seen
    assert SECRET not in seen
