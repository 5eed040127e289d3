"""From one OUTPUT, or two, to a page and a document."""

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.metadata import version
from typing import Any

from pipeline.qa.report.figures import NAMES, RunFigures, figures
from pipeline.qa.report.gallery import galleries
from pipeline.qa.report.page import render
from pipeline.qa.report.pairs import paired
from pipeline.qa.report.run import OnRead, read_run
from pipeline.storage import Storage

SCHEMA = 1  # version of the document


@dataclass(frozen=True, slots=True)
class Report:
    """A report.

    Attributes:
        page: HTML, whole in itself.
        document: the numbers of the page, as JSON has them.
    """

    page: str
    document: dict[str, Any]


def make_report(
    storage: Storage, output: str, other: str | None = None, *, now: datetime, on_read: OnRead | None = None
) -> Report:
    """Look at a run, finished or not, or at two side by side.

    Args:
        output: OUTPUT of the run.
        other: OUTPUT of a run to compare it with.
        now: the time the report tells.
        on_read: called with (files read, files in all) after each file.

    Raises:
        UsageError: there is no run, or its job.json or manifest.parquet is damaged.
        StorageError: the store did not answer.
    """
    runs = [read_run(storage, url, on_read) for url in (output, other) if url is not None]
    numbers = [figures(run) for run in runs]
    differences = paired(*runs) if len(runs) == 2 else None
    shown = galleries(storage, runs, [""] if len(runs) == 1 else ["A", "B"])
    made = f"{now:%Y-%m-%d %H:%M} UTC, tokenmill {version('tokenmill')}"
    document = {
        "schema": SCHEMA,
        "made": now.isoformat(timespec="seconds"),
        "runs": [_plain(one) for one in numbers],
        "paired": asdict(differences) if differences else None,
        "galleries": {
            gallery.name: [[asdict(sample) for sample in exhibit.samples] for exhibit in gallery.exhibits]
            for gallery in shown
        },
    }
    return Report(render(runs, numbers, differences, shown, made), document)


def _plain(one: RunFigures) -> dict[str, Any]:
    """The numbers of a run for JSON; of very many shards without evidence the first are named."""
    document = asdict(one)
    coverage = document["coverage"]
    coverage["missing_count"], coverage["missing"] = len(coverage["missing"]), coverage["missing"][:NAMES]
    return document


def publish_report(storage: Storage, report: Report, page_url: str) -> None:
    """Write the page to `page_url`, and the document beside it, as `report.json` for `index.html`.

    Raises:
        StorageError: the store did not answer.
    """
    folder, _, name = page_url.rpartition("/")
    stem = "report" if name == "index.html" else name.removesuffix(".html")
    storage.write(f"{folder}/{stem}.json", json.dumps(report.document, indent=1, allow_nan=False).encode())
    storage.write(page_url, report.page.encode())
