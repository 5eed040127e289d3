"""`tokenmill submit`: send `run` to a Ray cluster or to Slurm."""

import asyncio
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.options import Actors, Job, Model, Output, Settings, Shards, job_config, out

if TYPE_CHECKING:
    from pipeline.config import JobConfig
    from pipeline.submit.ray_jobs import Jobs


def main(
    job: Job = None,
    shards: Shards = None,
    model: Model = None,
    output: Output = None,
    actors: Actors = None,
    settings: Settings = None,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar="RAY_API_SERVER_ADDRESS",
            help="The cluster's dashboard, as http://127.0.0.1:8265 at the end of a tunnel.",
            show_default=False,
        ),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Show no log; wait for the end. Either way the run's exit code is ours.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait: 0 says that the job was sent.")] = False,
    env: Annotated[
        list[str] | None,
        typer.Option(
            "--env",
            metavar="NAME",
            help="A variable that the job gets with the value it has here. No secrets. Repeatable.",
            show_default=False,
        ),
    ] = None,
    slurm: Annotated[
        bool,
        typer.Option("--slurm", help="To Slurm instead: write a batch script that starts Ray on its nodes, send it."),
    ] = False,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(
            "--sbatch",
            metavar="OPTION",
            help="Option of sbatch, as nodes=4 or gpus-per-node=8. Repeatable.",
            show_default=False,
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--folder",
            metavar="DIR",
            help="Of --slurm: for job, script and log, on a disk that all nodes share; ./NAME-OF-THE-JOB if not given.",
            show_default=False,
        ),
    ] = None,
    upload_code: Annotated[
        bool,
        typer.Option(
            "--upload-code", help="Send this installation's code along; else that of the nodes (their image) runs."
        ),
    ] = False,
) -> None:
    """Send the run to a Ray cluster (--address), and follow its log, until Ctrl-C; or to Slurm (--slurm).

    The same command again follows the run while it is at work, and resumes it afterwards.
    """
    config = job_config(job, shards=shards, model=model, output=output, actors=actors, settings=settings)
    config.check_complete()
    from pipeline.errors import UsageError
    from pipeline.submit.job_folder import write_job

    if slurm:
        raise typer.Exit(_to_slurm(config, folder, sbatch or [], wait=wait))
    if address is None:
        raise UsageError("give --address URL (or RAY_API_SERVER_ADDRESS), the cluster's dashboard; or --slurm")
    if config.cluster.address is None:
        config = config.model_copy(update={"cluster": config.cluster.model_copy(update={"address": "auto"})})
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # read when Ray is imported; what the user set wins
    from pipeline.submit.ray_jobs import Jobs, chosen_environment

    environment = chosen_environment(env or (), os.environ)
    jobs = Jobs(address)
    with tempfile.TemporaryDirectory() as draft:
        name = write_job(config, Path(draft))
        sent = jobs.send(Path(draft), name, environment, upload_code=upload_code)
    out.print(f"{sent.id}: {'is at work already' if sent.found else 'sent'}, into {config.output.url}")
    if detach:
        return
    try:
        code = _stay(jobs, sent.id, log=not wait)
    except KeyboardInterrupt:
        out.print(
            f"\ndetached; the run goes on. The same command follows it again; `ray job stop {sent.id} --address "
            f"{address}` stops it"
        )
        raise typer.Exit(4) from None
    raise typer.Exit(code)


def _to_slurm(config: "JobConfig", folder: Path | None, options: list[str], *, wait: bool) -> int:
    """Leave the job and its script in a folder, and give them to Slurm; the exit code."""
    from pipeline.submit.job_folder import write_job
    from pipeline.submit.slurm import submit, write_script

    with tempfile.TemporaryDirectory() as draft:
        name = write_job(config, Path(draft))
        folder = (folder or Path(name)).resolve()
        shutil.copytree(draft, folder, dirs_exist_ok=True)
    script = write_script(folder, name, options)
    job, code = submit(script, wait=wait)
    out.print(f"job {job} by {script}, into {config.output.url}; its log is {folder}/slurm-{job}.log")
    out.print("the same command again waits for its end, and resumes")
    return code


def _stay(jobs: "Jobs", job: str, *, log: bool) -> int:
    """Show the log to its end, or not; the exit code of the run."""

    async def show() -> None:
        async for text in jobs.follow(job):
            sys.stdout.write(text)
            sys.stdout.flush()

    if log:
        asyncio.run(show())
    return jobs.wait(job)
