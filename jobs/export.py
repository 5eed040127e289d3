"""`tokenmill export`: a run in the layout of a training code."""

from dataclasses import asdict
from functools import partial as partial_of
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.options import AsJson, Settings, Store, out, print_json
from pipeline.config import resolve
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pipeline.config import ClusterConfig
    from pipeline.exports.job import ExportConfig, Runner
    from pipeline.signals import Stop

NAMES = "hf, llamagen, llamagen-t2i, rar, 4m, open-muse, maskgit, dalle-mini, bin, mds"


def main(
    output: Store,
    layout: Annotated[str, typer.Option("--format", metavar="F", help=f"Layout: {NAMES}.", show_default=False)],
    to: Annotated[str, typer.Option(metavar="URL", help="Folder or URL that receives it.", show_default=False)],
    view: Annotated[
        int | None, typer.Option(min=0, help="Export this view of each sample alone; all if not given.")
    ] = None,
    rows_per_file: Annotated[
        int | None, typer.Option(min=1, help="Rows of one unit of work; as the format likes it if not given.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Units at once, as Ray tasks; 1 works without Ray; all cores of the cluster if not given."
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="Of the model, in open-muse's file names; job.json's if empty.")] = "",
    partial: Annotated[
        bool, typer.Option("--partial", help="Export what is there of a run that is not finished.")
    ] = False,
    upload: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="With hf: upload to this data set of the Hub afterwards.")
    ] = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Write a run in the layout of a training code. Run the same command again to resume; see docs/exports.md."""
    from pipeline.exports import FORMATS
    from pipeline.exports.job import ExportConfig, export
    from pipeline.exports.source import open_source
    from pipeline.progress import for_stderr
    from pipeline.signals import stop_on_signals
    from pipeline.storage import Storage

    config = ExportConfig(format=layout, to=to, view=view, rows_per_file=rows_per_file, name=name)
    _check_upload(config, upload)
    job = resolve(settings=settings or ())
    source = open_source(Storage(job.storage), output, view=view, partial=partial)
    progress = for_stderr()
    try:
        with stop_on_signals() as stop:
            runner = _runner(job.cluster, workers, stop)
            result = export(source, config, runner, lambda done, of: progress.count("units", done, of))
    finally:
        progress.close()
    if result.finished:
        out.print(f"{result.rows:,} rows as {layout}: {result.files:,} files, {result.bytes / 1e6:,.1f} MB in {to}")
        if FORMATS[layout].advice:
            out.print(f"note: {FORMATS[layout].advice}")
        if upload:
            out.print(f"uploaded to {_upload(Path(to), upload)}")
    else:
        out.print(f"stopped after {result.units:,} of {result.of:,} units; run the same command again to go on")
    if as_json:
        print_json(asdict(result))
    raise typer.Exit(0 if result.finished else 4)


def _runner(cluster: "ClusterConfig", workers: int | None, stop: "Stop") -> "Runner":
    if workers == 1:
        from pipeline.exports.job import one_by_one

        return partial_of(one_by_one, stop=stop)
    from pipeline.tasks import Tasks

    return Tasks(cluster, workers, stop)


def _check_upload(config: "ExportConfig", upload: str | None) -> None:
    from pipeline.urls import scheme_of

    if upload and (config.format != "hf" or scheme_of(config.to) != "file"):
        raise UsageError("--upload must come with --format hf and a local folder as --to")


def _upload(folder: Path, repo: str) -> str:
    """Send an export to the Hub, in one commit. The token is huggingface_hub's own business."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    hub = HfApi()
    try:
        hub.create_repo(repo, repo_type="dataset", exist_ok=True, private=True)
        hub.upload_folder(repo_id=repo, folder_path=folder, repo_type="dataset", ignore_patterns=["_tokenmill/**"])
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError) as error:
        raise UsageError(f"the Hub did not take {repo}; the export itself is complete in {folder}: {error}") from error
    return f"{hub.endpoint}/datasets/{repo} (private, if it is new)"
