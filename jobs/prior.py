"""`tokenmill prior`: train a small token prior on a finished run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.options import (
    AsJson,
    Store,
    TrainingSettings,
    keys_option,
    out,
    print_json,
    settings_of,
    storage_for,
    training_screen,
)

if TYPE_CHECKING:
    from pipeline.prior import PriorReport


def main(
    output: Store,
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="Receives the prior, log and samples.")],
    model: Annotated[
        str | None, typer.Option(metavar="REF", help="The VQ model; the one in job.json if not given.")
    ] = None,
    partial: Annotated[
        bool, typer.Option(help="Take the parts that are there of a run that has not finished.")
    ] = False,
    settings: TrainingSettings = None,
    as_json: AsJson = False,
    _keys: Annotated[bool, keys_option("pipeline.prior", "PriorConfig")] = False,
) -> None:
    """Train a token prior (GPT or MaskGIT) on a run: do its tokens train a model? Run it again to go on.

    Exits with 3 if the prior is not better, on rows held out, than the entropy of the tokens without a model.
    """
    from pipeline.exports.source import open_source
    from pipeline.prior import PriorConfig, PriorTask, train_prior

    config = settings_of(PriorConfig, settings)
    source = open_source(storage_for(None), output, partial=partial)
    with training_screen(config.steps, _brief, lambda report: _full(report, config.steps)) as screen:
        summary = train_prior(PriorTask(to.absolute(), source, config, model), screen)
    if summary is None:
        out.print("stopped; run the same command again to go on")
        raise typer.Exit(4)
    out.print(f"prior in {to}, after {summary['steps']:,} steps on {summary['rows']:,} rows")
    out.print(_verdict(summary))
    if as_json:
        print_json(summary)
    if summary["better"] <= 0:
        raise typer.Exit(3)


def _brief(report: "PriorReport") -> str:
    return f"loss {report.loss:.2f}"


def _full(report: "PriorReport", steps: int) -> str:
    line = f"step {report.step:,}/{steps:,}  loss {report.loss:.3f} bits"
    if report.held_out is None:
        return line
    return f"{line}  held out: {report.held_out:.3f} bits per token"


def _verdict(summary: dict[str, Any]) -> str:
    bits, better = summary["bits_per_token"], summary["better"]
    most = "" if summary["exact"] else "at most "
    return (
        f"held out: {most}{bits['held_out']:.2f} bits per token; unigram {bits['unigram']:.2f}, by position "
        f"{bits['by_position']:.2f}: {abs(better):.2f} {'better' if better > 0 else 'worse'}"
    )
