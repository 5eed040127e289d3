"""`tokenmill report`: what a run made, to look at."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from jobs.options import AsJson, Settings, Store, out, print_json, storage_for


def main(
    output: Store,
    compare: Annotated[
        str | None, typer.Option(metavar="OTHER", help="OUTPUT of a second run, to show side by side.")
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            help="Write the page here, and its numbers beside it as FILE.json; if not given, to "
            "OUTPUT/report/index.html, or OUTPUT/report/compare.html with --compare.",
        ),
    ] = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Write the QA report: one HTML file that needs no network. Works while a run is at work, and after it died."""
    from pipeline.qa.report import make_report, publish_report
    from pipeline.urls import canonical, join

    storage = storage_for(settings)
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("reading", total=None)
        report = make_report(
            storage,
            output,
            compare,
            now=datetime.now(UTC),
            on_read=lambda done, total: progress.update(task, completed=done, total=total),
        )
    page = canonical(str(to)) if to else join(output, "report", "compare.html" if compare else "index.html")
    publish_report(storage, report, page)
    for run in report.document["runs"]:
        out.print(f"{run['output']}: {run['verdict']['headline']}: {run['verdict']['detail']}")
    out.print(f"report: {page} ({len(report.page) / 1e6:.1f} MB)")
    if as_json:
        print_json(report.document)
