"""From outside a cluster: a job is sent, watched, left, found again, stopped, sent again.

One real Ray, started by the commands of the launcher file that ships, one real Prometheus with the rules and the
dashboard that ship, and one story: a run in which a third of the samples is bad and one shard hangs.
"""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.infra.launched import Launched, launched
from tests.support.commands import ROOT, environment, parts, start, tokenmill, wait_until
from tests.support.corpora import sample, write_corpus, write_shard
from tests.support.documents import command_lines
from tests.support.faults import Fault, Faults
from tests.support.servers import free_ports, process

pytestmark = pytest.mark.system
MONITORING = ROOT / "infra" / "monitoring"
STRETCH = 0.1  # seconds a sample, so that several scrapes see the run
SOON = {"15s": "1s", "> 300": "> 4"}  # our rules at the pace of a test


@dataclass
class Prometheus:
    """The real one, on loopback."""

    url: str
    began: float = field(default_factory=time.time)

    def seen(self, query: str) -> list[dict[str, Any]]:
        """Every series that the query gave at any moment since the start."""
        asked = {"query": query, "start": self.began, "end": time.time(), "step": 1}
        with urllib.request.urlopen(f"{self.url}/api/v1/query_range?{urllib.parse.urlencode(asked)}") as answer:
            return json.load(answer)["data"]["result"]

    def summary(self) -> str:
        """The last value of everything that the alerts look at."""
        names = (
            "up",
            "ALERTS",
            *(f"ray_tokenmill_{name}" for name in ("idle_seconds", "samples_total", "rejected_total")),
        )
        return "; ".join(f"{name}: {[one['values'][-1][1] for one in self.seen(name)]}" for name in names)

    def rang(self) -> set[str]:
        """The alerts that have fired so far."""
        return {series["metric"]["alertname"] for series in self.seen('ALERTS{alertstate="firing"}')}


@contextmanager
def prometheus(folder: Path, nodes: Path) -> Iterator[Prometheus]:
    """Prometheus with the files that ship, faster."""
    folder.mkdir()
    for name in ("prometheus.yml", "alerts.yml"):
        text = (MONITORING / name).read_text().replace("/tmp/ray/prom_metrics_service_discovery.json", str(nodes))
        for ours, soon in SOON.items():
            text = text.replace(ours, soon)
        (folder / name).write_text(text)
    [port] = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    flags = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with process(["prometheus", *flags, f"--web.listen-address=127.0.0.1:{port}"], folder, f"{url}/-/ready", {}):
        yield Prometheus(url)


@dataclass
class Story:
    """What happened: the answers of the jobs API, what each command said, and what Prometheus saw."""

    folder: Path
    cluster: Launched
    watch: Prometheus
    faults: Faults
    codes: dict[str, int] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)

    def api(self, path: str, token: str | None = None, body: dict[str, str] | None = None) -> tuple[int, Any]:
        """Ask the jobs API."""
        request = urllib.request.Request(f"{self.cluster.dashboard}/api/{path}")
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        if body is not None:
            request.data = json.dumps(body).encode()
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, None

    def arguments(self, *more: str) -> list[object]:
        """`tokenmill submit` of always the same job."""
        settings = ["image.size=32", "cluster.actors=1", "cluster.cpus_per_actor=1", "limits.max_reject_fraction=0.1"]
        flags = [word for setting in settings for word in ("--set", setting)]
        where = ["--shards", f"@{self.folder}/list.txt", "--model", self.folder / "model", "--output", self.output]
        return ["submit", "--address", self.cluster.dashboard, "--env", "OMP_NUM_THREADS", *where, *flags, *more]

    @property
    def output(self) -> Path:
        return self.folder / "out"

    @property
    def token(self) -> str:
        return self.cluster.environment["RAY_AUTH_TOKEN"]

    @property
    def environment(self) -> dict[str, str]:
        return {**self.cluster.environment, "OMP_NUM_THREADS": "1"}

    def tell(self) -> None:
        """Live through it."""
        self.knock()
        followed = start(*self.arguments(), **self.environment)
        try:
            wait_until(self.has_come_to_a_halt, followed)
        except AssertionError as error:
            error.add_note(self.watch.summary())
            raise
        os.kill(followed.pid, signal.SIGINT)
        self.keep("followed", followed)
        waiting = start(*self.arguments("--wait"), **self.environment)
        assert waiting.stdout is not None
        self.said["found"] = waiting.stdout.readline()
        [job] = [job["submission_id"] for job in self.api("jobs/", self.token)[1]]
        self.kept = parts(self.output)
        self.api(f"jobs/{job}/stop", self.token, {})
        self.keep("waiting", waiting)
        self.faults.plan()
        again = tokenmill(*self.arguments(), **self.environment)
        self.codes["again"], self.said["again"] = again.returncode, again.stdout + again.stderr

    def has_come_to_a_halt(self) -> bool:
        """Both alerts ring, and all is done but the shard that hangs."""
        return self.watch.rang() >= {"TokenmillStalled", "TokenmillRejectStorm"} and len(parts(self.output)) == 2

    def knock(self) -> None:
        """Try to get in."""
        job = {"entrypoint": f"touch {self.folder}/intruded"}
        self.codes["no token"] = self.api("jobs/", None, job)[0]
        self.codes["wrong token"] = self.api("jobs/", "0" * 64, job)[0]
        self.codes["list"] = self.api("jobs/", self.token)[0]
        stranger = tokenmill(*self.arguments(), **self.environment | {"RAY_AUTH_TOKEN": "0" * 64})
        self.codes["stranger"], self.said["stranger"] = stranger.returncode, stranger.stderr

    def keep(self, name: str, process: subprocess.Popen[str]) -> None:
        """Wait for a command's end."""
        self.said[name] = process.communicate(timeout=120)[0]
        self.codes[name] = process.returncode


@pytest.fixture(scope="module")
def story(tiny_model: Path) -> Iterator[Story]:
    folder = Path(tempfile.mkdtemp(prefix="tm-"))  # Ray makes sockets below it, whose paths must be short
    bad = {"jpg": b"not an image"}
    for shard in range(3):
        samples = {f"{shard}-{n}": bad if n % 3 == 0 else sample(shard, n) for n in range(30)}
        write_shard(folder / f"{shard:05d}.tar", samples)
    (folder / "list.txt").write_text(f"{folder}/*.tar\n")
    shutil.copytree(tiny_model, folder / "model")
    faults = Faults(folder)
    faults.plan(Fault(point="opened", action="hang", shard="00002-*"), stretch=STRETCH)
    # Ray gives workers a niceness of 15: beside other tests an actor took longer to import torch than anybody waits.
    quick = {**faults.environment, "RAY_metrics_report_interval_ms": "500", "RAY_worker_niceness": "0"}
    nodes = folder / "ray" / "prom_metrics_service_discovery.json"
    try:
        with launched(folder / "ray", quick) as cluster, prometheus(folder / "prometheus", nodes) as watch:
            story = Story(folder, cluster, watch, faults)
            story.tell()
            yield story
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_strangers_are_refused(story: Story) -> None:
    assert [story.codes[name] for name in ("no token", "wrong token", "list")] == [401, 403, 200]
    assert not (story.folder / "intruded").exists()
    assert story.codes["stranger"] == 2
    assert "put the cluster's token into" in story.said["stranger"]


def test_log_is_followed_until_ctrl_c_and_the_run_goes_on(story: Story) -> None:
    assert story.codes["followed"] == 4
    assert "shards 0/3 | " in story.said["followed"]
    assert "detached; the run goes on" in story.said["followed"]
    assert story.said["found"].endswith(f"-1: is at work already, into file://{story.output}\n")


def test_stopped_job_ends_as_stopped(story: Story) -> None:
    assert story.codes["waiting"] == 4
    assert len(story.kept) == 2, "all but the shard that hung"


def test_resubmission_resumes_and_returns_the_code_of_the_run(story: Story) -> None:
    assert story.codes["again"] == 3, story.said["again"]
    assert "-2: sent, into" in story.said["again"].splitlines()[0]
    assert "33.3% of the samples were rejected" in story.said["again"]
    now = parts(story.output)
    assert len(now) == 3
    assert story.kept.items() <= now.items()


def test_token_is_on_no_command_line(story: Story) -> None:
    jobs = json.dumps(story.api("jobs/", story.token)[1])
    assert "OMP_NUM_THREADS" in jobs
    assert story.token not in jobs
    assert "job.yaml" in jobs


def test_command_of_the_tutorial_runs(story: Story, tmp_path: Path) -> None:
    write_corpus(tmp_path / "demo" / "shards", shards=2, samples=4)
    (tmp_path / "jobs").symlink_to(ROOT / "jobs")
    [command] = [line for line in command_lines("docs/tutorial.md") if line.startswith("tokenmill submit ")]
    here = command.replace("http://127.0.0.1:8265", story.cluster.dashboard)
    assert here != command
    path = f"{ROOT / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    env = environment(**story.environment, PATH=path)
    result = subprocess.run(here, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "finished: 2 of 2 shards are committed" in result.stdout
    assert len(parts(tmp_path / "demo" / "small")) == 2


def queries() -> dict[str, str]:
    """Every query of the dashboard, as Grafana would fill it in."""
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    filled = {"$run": "out-.*", "$__rate_interval": "5s"}
    found = {panel["title"]: target["expr"] for panel in panels for target in panel["targets"]}
    for name, value in filled.items():
        found = {title: expr.replace(name, value) for title, expr in found.items()}
    return found


@pytest.mark.parametrize("title", queries())
def test_every_query_of_the_dashboard_returns_data(story: Story, title: str) -> None:
    assert any(value != "NaN" for series in story.watch.seen(queries()[title]) for _, value in series["values"])


def test_alerts_ring_at_what_happened_and_at_nothing_else(story: Story) -> None:
    assert story.watch.rang() == {"TokenmillStalled", "TokenmillRejectStorm"}


def test_rejects_by_reason_reach_prometheus(story: Story) -> None:
    reasons = {series["metric"]["reason"] for series in story.watch.seen("ray_tokenmill_rejects_total")}
    assert reasons == {"not_image"}


def test_scrapes_are_those_of_the_shipped_configuration(story: Story) -> None:
    jobs = {
        config["job_name"] for config in yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
    }
    assert {series["metric"]["job"] for series in story.watch.seen("up")} == jobs
