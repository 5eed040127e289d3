"""`tokenmill export`: a run in the layout of a training code."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.options import AsJson, Settings, Store, out, print_json
from pipeline.config import resolve
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pipeline.config import ClusterConfig
    from pipeline.exports.job import Runner

NAMES = "hf, llamagen, llamagen-t2i, rar, 4m, open-muse, maskgit, webdataset, dalle-mini, bin, mds"


def main(
    output: Store,
    layout: Annotated[str, typer.Option("--format", metavar="F", help=f"Layout: {NAMES}.", show_default=False)],
    to: Annotated[
        str, typer.Option(metavar="URL", help="New or empty folder or URL that receives it.", show_default=False)
    ],
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
    repo: Annotated[
        str | None,
        typer.Option("--upload", metavar="OWNER/NAME", help="With hf: upload to this data set of the Hub afterwards."),
    ] = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Write a run in the layout of a training code. Run the same command again to resume; see docs/exports.md."""
    from pipeline.exports import FORMATS
    from pipeline.exports.hugging_face import upload
    from pipeline.exports.job import ExportConfig, export
    from pipeline.exports.source import open_source
    from pipeline.progress import for_stderr
    from pipeline.signals import stop_on_signals
    from pipeline.storage import Storage
    from pipeline.urls import scheme_of

    config = ExportConfig(format=layout, to=to, view=view, rows_per_file=rows_per_file, name=name)
    if repo and (layout != "hf" or scheme_of(to) != "file"):
        raise UsageError("--upload must come with --format hf and a local folder as --to")
    job = resolve(settings=settings or ())
    source = open_source(Storage(job.storage), output, view=view, partial=partial)
    runner, progress = _runner(job.cluster, workers), for_stderr()
    try:
        with stop_on_signals() as stop, stop.interrupting():
            result = export(source, config, runner, lambda done, of: progress.count("units", done, of))
    except KeyboardInterrupt:
        out.print("stopped; run the same command again to go on")
        raise typer.Exit(4) from None
    finally:
        progress.close()
    out.print(f"{result.rows:,} rows as {layout}: {result.files:,} files, {result.bytes / 1e6:,.1f} MB in {to}")
    if FORMATS[layout].advice:
        out.print(f"note: {FORMATS[layout].advice}")
    if repo:
        out.print(f"uploaded to {upload(to, repo)}")
    if as_json:
        print_json(asdict(result))


def _runner(cluster: "ClusterConfig", workers: int | None) -> "Runner":
    if workers == 1:
        from pipeline.exports.job import one_by_one

        return one_by_one
    from pipeline.on_ray.tasks import Tasks

    return Tasks(cluster, workers)
