"""Options that several commands share, and how results and errors reach the terminal."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import typer
from pydantic import BaseModel, ValidationError
from rich.console import Console

from pipeline.config import JobConfig, describe_options, parse_yaml, resolve
from pipeline.errors import UsageError
from pipeline.progress import Progress, clock, for_stderr
from pipeline.signals import Stop, stop_on_signals
from pipeline.storage import Storage

Config = TypeVar("Config", bound=BaseModel)
Report = TypeVar("Report")

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
TrainingSettings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any key of --keys, e.g. steps=500.")
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


# --- trainings: their configuration is one flat model, listed by --keys ---


def keys_option(module: str, name: str) -> Any:
    """The option `--keys`: it lists all keys of a configuration with defaults and units.

    Args:
        module, name: where the configuration is; imported only if it is asked for.
    """

    def show(wanted: bool) -> None:
        if not wanted:
            return
        for key, field in getattr(import_module(module), name).model_fields.items():
            default = "the demo's, as YAML" if isinstance(field.default, BaseModel) else field.default
            out.print(f"{key} = {default}: {field.description}")
        raise typer.Exit

    return typer.Option("--keys", is_eager=True, callback=show, help="List the keys.")


def settings_of(config: type[Config], settings: list[str] | None) -> Config:
    """A configuration with `KEY=VALUE` settings, values as YAML.

    Raises:
        UsageError: a key is unknown, or a value is no YAML or not what it must be.
    """
    values = {}
    for setting in settings or ():
        key, separator, text = setting.partition("=")
        if not separator or key not in config.model_fields:
            raise UsageError(f"--set must be one of {', '.join(config.model_fields)} as KEY=VALUE, got {setting!r}")
        values[key] = parse_yaml(text, f"--set {key}")
    try:
        return config(**values)
    except ValidationError as error:
        problems = [": ".join([*map(str, problem["loc"]), problem["msg"]]) for problem in error.errors()]
        raise UsageError("; ".join(problems)) from error


class TrainingScreen(Generic[Report]):
    """Shows a training on the terminal: a watcher, as `pipeline.training.watcher` has it.

    Args:
        steps: of the whole training.
        progress: where to show it.
        stop: whether to stop.
        brief, full: a report in a few words, and all of it.
    """

    def __init__(
        self,
        steps: int,
        progress: Progress,
        stop: Stop,
        brief: Callable[[Report], str],
        full: Callable[[Report], str],
    ) -> None:
        self._steps, self._progress, self._stop = steps, progress, stop
        self._brief, self._full = brief, full
        self._first, self._start = 0, time.monotonic()
        self._figures = ""

    def began(self, step: int) -> None:
        self._first, self._start = step, time.monotonic()
        if step:
            self._progress.note(f"going on after step {step:,}")

    def stepped(self, step: int) -> None:
        done = step - self._first
        left = (time.monotonic() - self._start) / done * (self._steps - step) if done else None
        self._progress.count(f"{self._figures}ETA {clock(left)} | step", step, self._steps)

    def reported(self, report: Report) -> None:
        self._figures = f"{self._brief(report)} | "
        self._progress.note(self._full(report))

    def stopping(self) -> bool:
        return self._stop.requested


@contextmanager
def training_screen(
    steps: int, brief: Callable[[Report], str], full: Callable[[Report], str]
) -> Iterator[TrainingScreen[Report]]:
    """A screen on stderr; Ctrl-C and SIGTERM ask the training to stop."""
    progress = for_stderr()
    try:
        with stop_on_signals() as stop:
            yield TrainingScreen(steps, progress, stop, brief, full)
    finally:
        progress.close()
