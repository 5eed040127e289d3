"""Keys, tokens and signed URLs appear nowhere: no log at DEBUG, no part, no report, no error, no file of Ray's."""

import base64
import io
import json
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pyarrow.parquet as pq
import pytest

from tests.chaos.ground import OneNode
from tests.support import s3 as servers
from tests.support.commands import environment, tokenmill
from tests.support.corpora import sample, write_shard

KEY, SECRET = "CANARYKEYID987654321", "canary/secret+key=Zx9q7Wv3Ut1Sr5Po"
TOKEN, SIGNATURE = "canary+session/token=AbCdEfGhIjKlMnOp", "canarysignature0123456789abcdef"
# Every process that has this folder on its path logs everything to its stderr: the driver, actors, Ray's own.
LOG_ALL = """
import logging
logging.basicConfig(level=logging.DEBUG, format="%(levelname)s %(name)s %(message)s")
"""
# The driver keeps what it hands to Ray: arguments of actors and of their calls.
KEEP_ALL = """
import os, uuid
if folder := os.environ.get("KEEP_PICKLES"):
    import ray.cloudpickle
    dumps = ray.cloudpickle.dumps
    def kept(*arguments, **options):
        data = dumps(*arguments, **options)
        with open(f"{folder}/pickle-{uuid.uuid4().hex}", "wb") as file:
            file.write(data)
        return data
    ray.cloudpickle.dumps = kept
"""
# What the cluster itself keeps: its tables of actors, calls, workers and jobs, and its key-value store.
ASK_RAY = """
import sys
from ray._raylet import GcsClient, GcsClientOptions, GlobalStateAccessor
options = GcsClientOptions.create(sys.argv[1], None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False)
tables = GlobalStateAccessor(options)
tables.connect()
actors, calls = tables.get_actor_table(None, None), tables.get_task_events()
for table in (actors, calls, tables.get_worker_table(), tables.get_job_table()):
    sys.stdout.buffer.writelines(table)
store = GcsClient(address=sys.argv[1])
for space in (None, b"fun", b"session", b"job", b"package"):
    for key in store.internal_kv_keys(b"", space):
        sys.stdout.buffer.write(key + b" " + (store.internal_kv_get(key, space) or b""))
"""
# What its dashboard shows to people and gives to programs, of everything that is or was.
TABLES = ("actors", "tasks", "workers", "nodes", "jobs", "objects", "placement_groups", "runtime_envs")
PAGES = (
    *(f"/api/v0/{table}?detail=1&limit=10000" for table in TABLES),
    *(f"/api/v0/{table}/summarize" for table in ("actors", "tasks", "objects")),
    *("/api/v0/tasks/timeline", "/api/v0/cluster_metadata", "/api/jobs/", "/api/cluster_status", "/logical/actors"),
    *("/nodes?view=summary", "/events", "/api/component_activities"),
)


def spellings(secret: str) -> set[bytes]:
    """The ways a secret may be written: plain, quoted, in hex and in base64 at any offset."""
    raw = secret.encode()
    encoded = {base64.b64encode(b"\0" * shift + raw)[4 if shift else 0 : -4] for shift in range(3)}
    cased = {raw.hex().encode(), raw.hex().upper().encode(), quote(secret, safe="").encode(), repr(secret).encode()}
    return {raw, raw.replace(b"/", rb"\/"), *encoded, *cased}


NEEDLES = {spelling for secret in (KEY, SECRET, TOKEN, SIGNATURE) for spelling in spellings(secret)}


def leaks(data: bytes) -> list[bytes]:
    """The secrets in `data`, each with what stands around it."""
    found = [(needle, data.find(needle)) for needle in NEEDLES]
    return [data[max(0, at - 80) : at + len(needle) + 40] for needle, at in found if at >= 0]


@pytest.mark.parametrize("secret", [KEY, SECRET, TOKEN, SIGNATURE])
def test_search_finds_every_spelling(secret: str) -> None:
    raw = secret.encode()
    texts = [raw, raw.hex().encode(), quote(secret, safe="").encode()]
    texts += [base64.b64encode(b"x" * before + raw + b"tail") for before in range(5)]
    assert all(leaks(b"before " + text + b" after") for text in texts)
    assert leaks(b"nothing of the kind") == []


@dataclass(frozen=True)
class Given:
    """What the processes of a cluster find in their environment."""

    environment: dict[str, str]


@dataclass(frozen=True)
class Ground:
    """A store whose keys are canaries, with shards and a model, and a folder for what a run leaves beside it."""

    server: servers.S3
    url: str
    folder: Path

    def run(self, *options: str, shards: str | None = None, output: str | None = None, **env: str) -> int:
        """`tokenmill run`, in the open: its exit code. Whatever it says is kept in `folder`."""
        where = ["--shards", shards or f"{self.url}/in/{{0..1}}.tar", "--model", f"{self.url}/model"]
        where += ["--output", output or f"{self.url}/out", "--set", "image.size=32", *options]
        env = {**self.server.environment, "PYTHONPATH": f"{self.folder}/site", "RAY_TMPDIR": str(self.folder), **env}
        done = tokenmill("run", *where, "--json", **env)
        number = len(list(self.folder.glob("said-*")))
        (self.folder / f"said-{number}").write_text(done.stdout + done.stderr)
        return done.returncode

    def said(self) -> str:
        """What all runs have said so far."""
        return "".join(path.read_text() for path in sorted(self.folder.glob("said-*")))

    def everything(self) -> Iterator[tuple[str, bytes]]:
        """Every file that the runs left here or in the store, parts also unpacked."""
        for path in self.folder.rglob("*"):
            if path.is_file():
                yield str(path), path.read_bytes()
        client = self.server.client()
        for name in client.find(self.url):
            data = client.cat_file(name)
            yield name, data
            if name.endswith(".parquet"):
                table = pq.read_table(io.BytesIO(data))
                yield f"{name}, unpacked", repr((table.to_pylist(), table.schema.metadata)).encode()


@pytest.fixture
def ground(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ground]:
    monkeypatch.setattr(servers, "KEY", KEY)
    monkeypatch.setattr(servers, "SECRET", SECRET)
    (tmp_path / "s3").mkdir()
    bad = {"bad": {"jpg": b"not an image"}, **{f"a{i}": sample(1, i) for i in range(20)}}
    shards = [write_shard(tmp_path / "0.tar", bad), write_shard(tmp_path / "1.tar", {"b0": sample(2, 0)})]
    # Ray makes sockets below its folder, whose paths must be short.
    with servers.seaweedfs(tmp_path / "s3") as server, tempfile.TemporaryDirectory(prefix="tm-") as folder:
        ground = Ground(server, server.make_bucket("canary"), Path(folder))
        for file, place in [*((path, "in") for path in shards), *((path, "model") for path in tiny_model.iterdir())]:
            server.client().put_file(str(file), f"{ground.url}/{place}/{file.name}")
        (ground.folder / "site").mkdir()
        (ground.folder / "site" / "sitecustomize.py").write_text(LOG_ALL + KEEP_ALL)
        yield ground


@pytest.mark.system
def test_secrets_appear_nowhere(ground: Ground) -> None:
    signed = f"http://127.0.0.1:9/a.tar?X-Amz-Signature={SIGNATURE}&X-Amz-Security-Token={quote(TOKEN, safe='')}"
    codes = {
        "a run": ground.run(),
        "a missing bucket": ground.run(output="s3://no-such-bucket/out"),
        "a token that the store refuses": ground.run(AWS_SESSION_TOKEN=TOKEN),
        "a store that is down": ground.run(
            *("--set", "storage.retry_seconds=0.5"), AWS_ENDPOINT_URL="http://127.0.0.1:9", AWS_SESSION_TOKEN=TOKEN
        ),
        "a signed URL": ground.run("--set", "storage.allow_http=true", shards=signed),
        "a password in a URL": ground.run(shards=f"s3://{KEY}:{SECRET}@canary/in/0.tar"),
        "a secret option": ground.run("--set", f"storage.options={{secret: {SECRET!r}}}"),
    }
    assert codes.pop("a run") == 0, ground.said()[-3000:]
    assert 0 not in codes.values(), codes
    everything = dict(ground.everything())
    logs = [name for name, data in everything.items() if b"DEBUG " in data]
    assert any("/said-0" in name for name in logs), "the driver logs everything"
    assert any("/logs/worker-" in name for name in logs), "and so does the actor"
    assert any(name.endswith("unpacked") for name in everything)
    assert {name: found for name, data in everything.items() if (found := leaks(data))} == {}


def told_by(cluster: OneNode) -> bytes:
    """All that the cluster can tell of its actors and of the calls that they got."""
    command = [sys.executable, "-c", ASK_RAY, cluster.address]
    return subprocess.run(command, capture_output=True, check=True, env=environment(**cluster.environment)).stdout


def shown_by(cluster: OneNode) -> dict[str, bytes]:
    """Every page of the cluster's dashboard, those of its nodes too."""
    token = {"Authorization": f"Bearer {cluster.environment['RAY_AUTH_TOKEN']}"}

    def page(path: str) -> bytes:
        with urllib.request.urlopen(urllib.request.Request(f"{cluster.dashboard}{path}", headers=token)) as answer:
            return answer.read()

    nodes = json.loads(page("/nodes?view=summary"))["data"]["summary"]
    return {path: page(path) for path in (*PAGES, *(f"/nodes/{node['raylet']['nodeId']}" for node in nodes))}


@pytest.mark.system
def test_secrets_of_a_cluster_that_has_its_own(ground: Ground) -> None:
    """Its workers find the keys in their own environment: none is in a task's arguments, Ray's tables or its logs."""
    given = Given({**ground.server.environment, "PYTHONPATH": f"{ground.folder}/site"})
    cluster = OneNode(ground.folder, given, dashboard=True)
    try:
        flags = ["--set", f"cluster.address={cluster.address}", "--set", "cluster.actors=1"]
        code = ground.run(*flags, **cluster.environment, KEEP_PICKLES=str(ground.folder))
        (ground.folder / "told").write_bytes(told := told_by(cluster))
        (ground.folder / "shown").write_bytes(b"\n".join((shown := shown_by(cluster)).values()))
    finally:
        cluster.stop()
    assert code == 0, ground.said()[-3000:]
    pickles = [path.read_bytes() for path in ground.folder.glob("pickle-*")]
    assert any(b"JobConfig" in data and b"StorageConfig" in data for data in pickles), "the arguments of an actor"
    assert b"RemoteWorker" in told
    assert b"RemoteWorker" in shown["/logical/actors"]
    assert all(b"RemoteWorker" in shown[f"/api/v0/{table}?detail=1&limit=10000"] for table in ("actors", "tasks"))
    assert b"image.size=32" in shown["/api/jobs/"], "the command line of the driver"
    everything = dict(ground.everything())
    assert any("/logs/raylet" in name for name in everything)
    assert any("/logs/gcs_server" in name for name in everything)
    assert any("/logs/worker-" in name and b"DEBUG " in data for name, data in everything.items())
    assert {name: found for name, data in everything.items() if (found := leaks(data))} == {}
