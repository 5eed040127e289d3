"""`tokenmill fit`: train a small VQ model on your own images."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.options import Shards, out
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pipeline.fit import FitConfig, FitReport
    from pipeline.progress import Progress
    from pipeline.signals import Stop


def _list_keys(wanted: bool) -> None:
    """All keys of `--set` with defaults and units."""
    if not wanted:
        return
    from pipeline.fit import FitConfig

    for name, field in FitConfig.model_fields.items():
        default = "the demo's geometry, as YAML" if name == "model" else field.default
        out.print(f"{name} = {default}: {field.description}")
    raise typer.Exit


def main(
    output: Annotated[Path, typer.Option(help="Folder that receives the model (diffusers layout), log and pictures.")],
    shards: Shards = None,
    images: Annotated[Path | None, typer.Option(help="A folder of image files, instead of shards.")] = None,
    held_out: Annotated[
        Path | None, typer.Option(help="A folder of images not to train on: PSNR and codes used on them are logged.")
    ] = None,
    half: Annotated[bool, typer.Option(help="Store the weights as float16: half the size on disk.")] = True,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any key of --keys, e.g. steps=500.")
    ] = None,
    _keys: Annotated[bool, typer.Option("--keys", is_eager=True, callback=_list_keys, help="List the keys.")] = False,
) -> None:
    """Train a VQ model (van den Oord et al. 2017) on shards or a folder of images. Run it again to go on."""
    from pipeline.fit import FitTask, ImageSource, fit_folder
    from pipeline.progress import for_stderr
    from pipeline.signals import stop_on_signals

    config = _config(settings or [])
    task = FitTask(
        folder=output.absolute(),
        source=ImageSource(tuple(shards or ()), images.absolute() if images else None),
        config=config,
        held_out=ImageSource(folder=held_out.absolute()) if held_out else None,
        half=half,
    )
    progress = for_stderr()
    try:
        with stop_on_signals() as stop:
            if config.workers > 1:
                from pipeline.fit_workers import fit_on_workers

                finished = fit_on_workers(task, _Screen(config, progress, stop))
            else:
                finished = fit_folder(task, _Screen(config, progress, stop))
    finally:
        progress.close()
    if not finished:
        out.print("stopped; run the same command again to go on")
        raise typer.Exit(4)
    out.print(f"model in {output}, after {config.steps:,} steps")


class _Screen:
    """Shows a training on the terminal."""

    def __init__(self, config: "FitConfig", progress: "Progress", stop: "Stop") -> None:
        self._config, self._progress, self._stop = config, progress, stop
        self._first, self._start = 0, time.monotonic()
        self._figures = ""

    def began(self, step: int) -> None:
        self._first, self._start = step, time.monotonic()
        if step:
            self._progress.note(f"going on after step {step:,}")

    def stepped(self, step: int) -> None:
        from pipeline.progress import clock

        done, steps = step - self._first, self._config.steps
        left = (time.monotonic() - self._start) / done * (steps - step) if done else None
        self._progress.count(f"{self._figures}ETA {clock(left)} | step", step, steps)

    def reported(self, report: "FitReport") -> None:
        self._figures = f"loss {report.loss:.4f} | PSNR {report.psnr:.2f} dB | "
        held_out = ""
        if report.held_out_psnr is not None and report.held_out_usage is not None:
            held_out = f"  held out: PSNR {report.held_out_psnr:.2f} dB, codes used {report.held_out_usage:.1%}"
        self._progress.note(
            f"step {report.step:,}/{self._config.steps:,}  loss {report.loss:.4f}  PSNR {report.psnr:.2f} dB  "
            f"codes used {report.usage:.1%}  perplexity {report.perplexity:.0f}{held_out}"
        )

    def stopping(self) -> bool:
        return self._stop.requested


def _config(settings: list[str]) -> "FitConfig":
    """The training configuration with `KEY=VALUE` settings."""
    import yaml
    from pydantic import ValidationError

    from pipeline.fit import FitConfig

    values = {}
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator or key not in FitConfig.model_fields:
            raise UsageError(f"--set must be one of {', '.join(FitConfig.model_fields)} as KEY=VALUE, got {setting!r}")
        values[key] = yaml.safe_load(text)
    try:
        return FitConfig(**values)
    except ValidationError as error:
        problems = [": ".join([*map(str, problem["loc"]), problem["msg"]]) for problem in error.errors()]
        raise UsageError("; ".join(problems)) from error
