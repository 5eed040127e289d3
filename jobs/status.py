"""`tokenmill status`: how far a run is, from its store alone."""

import time
from typing import Annotated, Any

import typer
from rich.live import Live

from jobs.options import AsJson, Settings, Store, out, print_json, storage_for


def main(
    output: Store,
    watch: Annotated[bool, typer.Option("--watch", help="Look again and again, until the run is complete.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Pause between two looks of --watch (seconds).")] = 5.0,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Show the progress of a run, from what OUTPUT holds; works while it runs, and after it died."""
    from pipeline.output import Output

    run = Output(storage_for(settings), output)
    state = run.state()
    if watch and not as_json:
        with Live(_text(output, state), console=out, auto_refresh=False) as live:
            while not state["success"]:
                time.sleep(every)
                state = run.state()
                live.update(_text(output, state), refresh=True)
        return
    while as_json and watch and not state["success"]:
        print_json(state)
        time.sleep(every)
        state = run.state()
    if as_json:
        print_json(state)
    else:
        out.print(_text(output, state))


def _text(output: str, state: dict[str, Any]) -> str:
    """The state in lines for a person."""
    shards = state["shards"]
    filtered = f" + {state['filtered']:,} filtered" if state["filtered"] else ""
    lines = [
        f"{output}: {'complete' if state['success'] else 'not complete'}",
        f"shards    {shards['committed']:,} of {shards['total']:,} committed, {shards['quarantined']:,} quarantined",
        f"samples   {state['samples']:,} = {state['tokenized']:,} tokenized + {state['rejects']:,} rejected{filtered}",
        f"rows      {state['rows']:,} in {state['bytes'] / 1e6:,.1f} MB",
        f"tokens    {state['fingerprint']}",
    ]
    lines += [f"quarantined {bad['shard']}: {bad['reason']}: {bad['message']}" for bad in state["quarantined"]]
    return "\n".join(lines)
