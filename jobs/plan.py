"""`tokenmill plan`: what a run would take. Changes nothing."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from jobs.options import Actors, AsJson, Job, Model, Settings, Shards, job_config, out, print_json


def main(
    job: Job = None,
    shards: Shards = None,
    model: Model = None,
    actors: Actors = None,
    probes: Annotated[int, typer.Option(min=1, help="Shards to read whole (shards).")] = 2,
    prices: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Prices as YAML: actor_hour: {H200: 3.5}, thousand_requests, gb_read, gb_month, currency.",
            show_default=False,
        ),
    ] = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """List and freeze the shards, probe a few on this machine, and forecast images, time and bytes."""
    config = job_config(job, shards=shards, model=model, output=None, actors=actors, settings=settings)
    config.check_complete(needs_output=False)
    from pipeline.forecast import price_table
    from pipeline.plan import plan
    from pipeline.progress import clock

    found = plan(config, probes, price_table(prices) if prices else None)
    missing = f" ({found.missing:,} of them missing)" if found.missing else ""
    out.print(f"input       {found.shards:,} shards{missing}, {found.input_bytes / 1e9:,.3f} GB")
    out.print(f"images      about {found.images:,}")
    out.print(
        f"one actor   {found.actor_rate:,.1f} images/s on {found.device} "
        f"(model alone {found.model_rate:,.1f}, decode alone {found.decode_rate:,.1f}; "
        f"bound by {found.bottleneck}, {found.bottleneck_busy:.0%} busy)"
    )
    out.print(
        f"time        {clock(found.seconds)} with {found.actors} actor{'s' * (found.actors != 1)}, "
        f"{found.actor_hours:,.2f} actor-hours, {found.cpu_seconds / 3600:,.2f} CPU-hours"
    )
    if found.cores_per_gpu is not None:
        out.print(f"supply      a GPU that never waits needs {found.cores_per_gpu:,.1f} cores")
    out.print(f"requests    {found.requests:,} to the store, {found.requests_per_second:,.1f} a second")
    out.print(f"output      about {found.output_bytes / 1e9:,.3f} GB, {found.tokens:,} tokens")
    if found.cost is not None:
        out.print(f"cost        {found.cost:,.2f}, and {found.cost_per_month:,.2f} a month for the output")
    elif prices:
        out.print(f"cost        unknown: {prices} has no price for an actor-hour on {found.device}")
    if as_json:
        print_json(asdict(found))
