"""`tokenmill fit`: train a small VQ model on your own images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.options import Shards, TrainingSettings, keys_option, out, settings_of, training_screen

if TYPE_CHECKING:
    from pipeline.fit import FitConfig, FitReport


def main(
    output: Annotated[Path, typer.Option(help="Folder that receives the model (diffusers layout), log and pictures.")],
    shards: Shards = None,
    images: Annotated[Path | None, typer.Option(help="A folder of image files, instead of shards.")] = None,
    held_out: Annotated[
        Path | None, typer.Option(help="A folder of images not to train on: PSNR and codes used on them are logged.")
    ] = None,
    half: Annotated[bool, typer.Option(help="Store the weights as float16: half the size on disk.")] = True,
    settings: TrainingSettings = None,
    _keys: Annotated[bool, keys_option("pipeline.fit", "FitConfig")] = False,
) -> None:
    """Train a VQ model (van den Oord et al. 2017) on shards or a folder of images. Run it again to go on."""
    from pipeline.fit import FitConfig, FitTask, ImageSource, fit_folder

    config = settings_of(FitConfig, settings)
    task = FitTask(
        folder=output.absolute(),
        source=ImageSource(tuple(shards or ()), images.absolute() if images else None),
        config=config,
        held_out=ImageSource(folder=held_out.absolute()) if held_out else None,
        half=half,
    )
    with training_screen(config.steps, _brief, lambda report: _full(report, config)) as screen:
        if config.workers > 1:
            from pipeline.on_ray.fit_workers import fit_on_workers

            finished = fit_on_workers(task, screen)
        else:
            finished = fit_folder(task, screen)
    if not finished:
        out.print("stopped; run the same command again to go on")
        raise typer.Exit(4)
    out.print(f"model in {output}, after {config.steps:,} steps")


def _brief(report: "FitReport") -> str:
    return f"loss {report.loss:.4f} | PSNR {report.psnr:.2f} dB"


def _full(report: "FitReport", config: "FitConfig") -> str:
    held_out = ""
    if report.held_out_psnr is not None and report.held_out_usage is not None:
        held_out = f"  held out: PSNR {report.held_out_psnr:.2f} dB, codes used {report.held_out_usage:.1%}"
    return (
        f"step {report.step:,}/{config.steps:,}  loss {report.loss:.4f}  PSNR {report.psnr:.2f} dB  "
        f"codes used {report.usage:.1%}  perplexity {report.perplexity:.0f}{held_out}"
    )
