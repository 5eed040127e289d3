"""What a job takes along, before it is sent anywhere."""

import asyncio
import os
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.config import resolve
from pipeline.errors import UsageError
from pipeline.shards.manifest import freeze
from pipeline.storage import Storage
from pipeline.submit import ray_jobs
from pipeline.submit.job_folder import write_job
from pipeline.submit.ray_jobs import Jobs, chosen_environment
from pipeline.submit.slurm import submit, write_script


def job(folder: Path, *settings: str, shards: str = "s3://b/{0..9}.tar") -> str:
    folder.mkdir()
    flags = {"shards": [shards], "model": "s3://b/model", "output": "s3://b/out"}
    return write_job(resolve(settings=settings, flags=flags, environment={}), folder)


def test_job_folder_says_the_same_as_the_command_line(tmp_path: Path) -> None:
    settings = ["image.size=64", "columns.caption=text", "select.where=['meta.width >= 9']", "cluster.scratch=/tmp"]
    job(tmp_path / "a", *settings)
    flags = {"shards": ["s3://b/{0..9}.tar"], "model": "s3://b/model", "output": "s3://b/out"}
    assert resolve(tmp_path / "a" / "job.yaml", environment={}) == resolve(
        settings=settings, flags=flags, environment={}
    )


def test_name_of_a_job_is_that_of_its_contents(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("s3://b/0.tar\n")
    names = [job(tmp_path / "a"), job(tmp_path / "b"), job(tmp_path / "c", "seed=1")]
    names += [job(tmp_path / "d", shards=f"@{tmp_path}/list.txt")]
    (tmp_path / "list.txt").write_text("s3://b/1.tar\n")
    names += [job(tmp_path / "e", shards=f"@{tmp_path}/list.txt")]
    assert names[0] == names[1]
    assert len(set(names)) == 4


def test_local_list_of_shards_travels_with_the_job(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("s3://b/0.tar\n")
    job(tmp_path / "a", shards=f"@{tmp_path}/list.txt")
    assert (tmp_path / "a" / "shards-0.txt").read_text() == "s3://b/0.tar\n"
    assert resolve(tmp_path / "a" / "job.yaml", environment={}).shards == ("@shards-0.txt",)


def urls(*specs: str) -> list[str]:
    return [shard.url for shard in freeze(Storage(), specs)]


@pytest.mark.parametrize(
    "spec",
    [
        *("in/{0..2}.tar", "{0..1}.tar", "file://in/0.tar", "./in/../0.tar", "~/0.tar", "in/*.tar", "in", "in/"),
        *("{in,in/../{more,in}}/0.tar", "{/a,in}/{0..1}.tar", "{in,~}/0.tar", "/a/0.tar", " in/0.tar "),
    ],
)
def test_shards_of_the_job_are_those_of_the_command(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.tar").write_bytes(b"x")
    (tmp_path / "list.txt").write_text(f"# relative ones mean the folder of the command\n\n{spec}\n")
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.chdir(tmp_path)
    here = urls(spec)
    for number, given in enumerate([spec, "@list.txt"]):
        job(tmp_path / str(number), "seed=0", shards=given)
        monkeypatch.chdir(tmp_path / str(number))
        monkeypatch.setenv("HOME", "/home/else")
        assert urls(*resolve(Path("job.yaml"), environment={}).shards) == here
        monkeypatch.setenv("HOME", "/home/somebody")
        monkeypatch.chdir(tmp_path)


def test_blank_spec_names_nothing(tmp_path: Path) -> None:
    job(tmp_path / "a", shards=" ")
    assert resolve(tmp_path / "a" / "job.yaml", environment={}).shards == ()


@pytest.mark.parametrize(
    "shards", ["@/no/such/list.txt", "s3://key:secret@b/0.tar", "https://h/0.tar?X-Amz-Signature=1"]
)
@pytest.mark.parametrize("listed", [False, True])
def test_job_that_must_not_travel(tmp_path: Path, shards: str, listed: bool) -> None:
    if listed:
        (tmp_path / "list.txt").write_text(f"s3://b/0.tar\n{shards}\n")
        shards = f"@{tmp_path}/list.txt"
    with pytest.raises(UsageError):
        job(tmp_path / "a", shards=shards)
    assert not (tmp_path / "a" / "job.yaml").exists()


def test_environment_of_a_job_has_the_values_of_here() -> None:
    assert chosen_environment(["AWS_REGION"], {"AWS_REGION": "us-east-1", "HOME": "/root"}) == {
        "AWS_REGION": "us-east-1"
    }


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("NOT_SET", "is not set here"),
        ("AWS_SECRET_ACCESS_KEY", "looks like a credential"),
        ("AWS_ACCESS_KEY_ID", "looks like a credential"),
        ("AWS_SESSION_TOKEN", "looks like a credential"),
        ("HF_TOKEN", "looks like a credential"),
        ("AZURE_STORAGE_SAS", "looks like a credential"),
        ("AZURE_STORAGE_CONNECTION_STRING", "looks like a credential"),
    ],
)
def test_environment_that_the_dashboard_must_not_show(name: str, says: str) -> None:
    here = {} if name == "NOT_SET" else {name: "canary"}
    with pytest.raises(UsageError, match=says) as refusal:
        chosen_environment([name], here)
    assert "canary" not in str(refusal.value)


@pytest.mark.parametrize("address", ["auto", "127.0.0.1:6379", "ray://h:10001"])
def test_address_that_is_no_dashboard(address: str) -> None:
    with pytest.raises(UsageError, match="must be the URL of the cluster's dashboard"):
        Jobs(address)


@pytest.mark.parametrize("option", ["--nodes=4", "nodes=4\n#SBATCH --uid=0", "", "Nodes"])
def test_option_that_sbatch_does_not_have(tmp_path: Path, option: str) -> None:
    with pytest.raises(UsageError, match="--sbatch must be"):
        write_script(tmp_path, "tokenmill-0", [option])


def test_folder_that_would_need_quoting(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must have no space"):
        write_script(tmp_path / "a b", "tokenmill-0")


class Cut:
    """A jobs API whose log is cut twice, and which is away once."""

    def __init__(self, _address: str) -> None:
        self.logs = [["one\ntw", None], ["on", "e\ntwo\nthr", None], ["one\ntwo\nthree\n"]]
        self.away, self.cuts = 1, 0

    async def tail_job_logs(self, _job: str) -> AsyncIterator[str]:
        for piece in self.logs.pop(0):
            if piece is None:
                self.cuts += 1
                raise RuntimeError("WebSocket connection closed unexpectedly")
            yield piece

    def get_job_info(self, _job: str) -> SimpleNamespace:
        if self.away:
            self.away -= 1
            raise ConnectionError("no route")
        over = not self.logs
        status = ray_jobs.JobStatus.FAILED if over else ray_jobs.JobStatus.RUNNING
        return SimpleNamespace(status=status, driver_exit_code=3 if over else None, message="")


def test_log_goes_on_where_it_was_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_jobs, "JobSubmissionClient", Cut)
    monkeypatch.setattr(ray_jobs, "WAIT_SECONDS", 0.0)
    monkeypatch.setattr(ray_jobs.tenacity, "wait_exponential", lambda **_: ray_jobs.tenacity.wait_none())
    jobs = Jobs("http://127.0.0.1:8265")

    async def shown() -> str:
        return "".join([piece async for piece in jobs.follow("job")])

    assert asyncio.run(shown()) == "one\ntwo\nthree\n"
    assert jobs.wait("job") == 3
    assert (jobs._client.cuts, jobs._client.away) == (2, 0)


def pretend(folder: Path, **programs: str) -> None:
    """Programs in `folder/bin` that note in `folder/called` that they were, and do as told."""
    (folder / "bin").mkdir()
    for name, does in programs.items():
        (folder / "bin" / name).write_text(f"#!/bin/bash\necho {name} >> {folder}/called\n{does}\n")
        (folder / "bin" / name).chmod(0o755)


def test_batch_job_whose_ray_does_not_start(tmp_path: Path) -> None:
    pretend(tmp_path, srun="exit 1", scontrol="echo localhost", scancel="exit 0")
    script = write_script(tmp_path, "tokenmill-0", ["nodes=1"])
    slurm = {"SLURM_JOB_ID": "9999", "SLURM_JOB_NODELIST": "localhost"}  # nobody listens on port 29999
    env = {**os.environ, **slurm, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    result = subprocess.run(["bash", script], capture_output=True, text=True, env=env, timeout=60, check=False)
    assert result.returncode == 1
    assert "Ray did not start on localhost" in result.stderr
    assert set((tmp_path / "called").read_text().split()) == {"scontrol", "srun"}
    assert not list(tmp_path.glob("token-*"))


# The variables around a job: those of the submitter, or of whoever started the cluster.
INHERITED = {"TOKENMILL_IMAGE__SIZE": "64", "TOKENMILL_OUTPUT": "elsewhere", "OTHER_SIZE": "1"}
TELL = "env | grep -E '^(TOKENMILL|OTHER)_'; exit 3"  # what `python` does there


def test_batch_job_heeds_its_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(
        tmp_path, srun="exit 0", scontrol="echo localhost", scancel="exit 0", python=f'[ "$1" = -c ] || {{ {TELL}; }}'
    )
    monkeypatch.setattr("sys.executable", f"{tmp_path}/bin/python")
    script = write_script(tmp_path, "tokenmill-0")
    with listener() as head:
        slurm = {"SLURM_JOB_ID": str(head.getsockname()[1] - 20_000), "SLURM_JOB_NODELIST": "localhost"}
        env = {**os.environ, **slurm, **INHERITED, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
        result = subprocess.run(["bash", script], capture_output=True, text=True, env=env, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (3, "OTHER_SIZE=1\n"), result.stderr


def listener() -> socket.socket:
    """Stands for the head of Ray, on one of the ports that the script may give it."""
    for port in range(20_000, 29_000):
        with suppress(OSError):
            return socket.create_server(("127.0.0.1", port))
    raise AssertionError("no port is free")


class Accepts:
    """A jobs API that notes what it is sent."""

    def __init__(self, _address: str) -> None:
        self.sent: list[dict[str, Any]] = []

    def list_jobs(self) -> list[SimpleNamespace]:
        return []

    def submit_job(self, **job: Any) -> str:
        self.sent.append(job)
        return str(job["submission_id"])


def test_ray_job_heeds_its_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(tmp_path, python=f'echo "$@"; {TELL}')
    monkeypatch.setattr(ray_jobs, "JobSubmissionClient", Accepts)
    jobs = Jobs("http://127.0.0.1:8265")
    assert jobs.send(tmp_path, "tokenmill-0", {}).id == "tokenmill-0-1"
    [job] = jobs._client.sent
    env = {**os.environ, **INHERITED, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    result = subprocess.run(
        job["entrypoint"], shell=True, env=env, capture_output=True, text=True, check=False
    )  # as Ray
    assert (result.returncode, result.stdout) == (3, "-m jobs run job.yaml --json\nOTHER_SIZE=1\n"), result.stderr


def test_machine_without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="there is no sbatch here"):
        submit(tmp_path / "run.sbatch", wait=False)
