"""Options that several commands share, and how results and errors reach the terminal."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from pipeline.config import JobConfig, describe_options, resolve
from pipeline.storage import Storage

Job = Annotated[
    Path | None, typer.Argument(metavar="[JOB.yaml]", help="Job file; flags and --set win over it.", show_default=False)
]
Shards = Annotated[
    list[str] | None,
    typer.Option(
        "--shards",
        metavar="SPEC",
        help="Input shards: URL or path, braces {000..999}, glob, folder or @list.txt. Repeatable.",
        show_default=False,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="REF", help="VQ model: folder or URL with config.json and safetensors, or a hub id.", show_default=False
    ),
]
Output = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Folder or URL that receives the dataset of tokens.", show_default=False),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Any configuration key below, e.g. image.size=128.", show_default=False
    ),
]
Actors = Annotated[
    str | None,
    typer.Option(
        metavar="N", help="Actors, n or min..max; one per GPU, or one on a CPU, if not given.", show_default=False
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one line of JSON, the last of stdout.")]
Store = Annotated[str, typer.Argument(metavar="OUTPUT", help="Folder or URL of a run.", show_default=False)]

out = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)  # a path may hold [x] or :x:


def job_config(
    job: Path | None,
    *,
    shards: list[str] | None,
    model: str | None,
    output: str | None,
    actors: str | None = None,
    settings: list[str] | None = None,
) -> JobConfig:
    """The configuration that a command line asks for."""
    flags = {"shards": shards or None, "model": model, "output": output, "cluster.actors": actors}
    return resolve(job, settings=settings or (), flags=flags)


def storage_for(settings: list[str] | None) -> Storage:
    """The storage of a command that only reads a run: options from --set and the environment."""
    return Storage(resolve(settings=settings or ()).storage)


def options_help() -> str:
    """All configuration keys with defaults and units, as the end of a command's help."""
    lines = [
        "[bold]Configuration keys[/] for JOB.yaml, --set KEY=VALUE and TOKENMILL_SECTION__KEY in the environment; "
        "flags win over --set, that over the environment, that over the file:"
    ]
    lines += [f"[cyan]{key}[/] = {default}: {text}" for key, default, text in describe_options()]
    return "\n\n".join(lines)


def print_json(document: dict[str, Any]) -> None:
    """One line of JSON on stdout."""
    print(json.dumps(document), flush=True)
