"""`tokenmill run`: tokenize the shards that have no part yet."""

from typing import Annotated

import typer

from jobs.options import Actors, AsJson, Job, Model, Output, Settings, Shards, job_config, out, print_json


def main(
    job: Job = None,
    shards: Shards = None,
    model: Model = None,
    output: Output = None,
    actors: Actors = None,
    retry_quarantined: Annotated[
        bool, typer.Option("--retry-quarantined", help="Try the shards again that an earlier run gave up.")
    ] = False,
    retry_rejects: Annotated[
        bool,
        typer.Option("--retry-rejects", help="Make the parts again that have rejects; each is replaced in one step."),
    ] = False,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Tokenize shards into OUTPUT. Run it again to resume, or with more shards to add them."""
    config = job_config(job, shards=shards, model=model, output=output, actors=actors, settings=settings)
    config.check_complete()
    from pipeline.driver import run
    from pipeline.progress import clock, for_stderr, run_name

    progress = for_stderr(config.log, run_name(config.output.url))
    try:
        result = run(config, progress, retry_quarantined=retry_quarantined, retry_rejects=retry_rejects)
    except KeyboardInterrupt:  # before or after the actors were at work; then signals drain
        out.print("stopped; run the same command again to go on")
        raise typer.Exit(4) from None
    finally:
        progress.close()
    summary = result.summary
    out.print(result.message)
    if summary:
        reasons = "".join(f", {count:,} {reason}" for reason, count in summary["rejects_by_reason"].items())
        rules = "".join(f", {count:,} by {rule}" for rule, count in summary["filtered_by_rule"].items())
        filtered = f" + {summary['filtered']:,} filtered{rules}" if rules else ""
        out.print(
            f"{summary['samples']:,} samples = {summary['tokenized']:,} tokenized + {summary['rejects']:,} rejected"
            f"{reasons}{filtered}; {summary['rows']:,} rows, {summary['bytes'] / 1e6:,.1f} MB in {config.output.url}"
        )
    out.print(f"{result.rates} ({clock(result.seconds)} in all)")
    if as_json:
        rates = {name: getattr(result.rates, name) for name in ("end_to_end", "model_alone", "decode_alone", "bound")}
        print_json(
            {**summary, "message": result.message, "exit_code": int(result.exit_code), "images_per_second": rates}
        )
    raise typer.Exit(int(result.exit_code))
