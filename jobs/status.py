"""`tokenmill status`: how far a run is, from its store alone."""

from jobs.options import AsJson, Settings, Store, out, print_json, storage_for


def main(output: Store, settings: Settings = None, as_json: AsJson = False) -> None:
    """Show the progress of a run, from what OUTPUT holds; works while it runs, and after it died."""
    from pipeline.output import Output

    state = Output(storage_for(settings), output).state()
    if as_json:
        print_json(state)
        return
    shards = state["shards"]
    out.print(f"{output}: {'complete' if state['success'] else 'not complete'}")
    out.print(
        f"shards    {shards['committed']:,} of {shards['total']:,} committed, {shards['quarantined']:,} quarantined"
    )
    filtered = f" + {state['filtered']:,} filtered" if state["filtered"] else ""
    out.print(
        f"samples   {state['samples']:,} = {state['tokenized']:,} tokenized + {state['rejects']:,} rejected{filtered}"
    )
    out.print(f"rows      {state['rows']:,} in {state['bytes'] / 1e6:,.1f} MB")
    out.print(f"tokens    {state['fingerprint']}")
    for failure in state["quarantined"]:
        out.print(f"quarantined {failure['shard']}: {failure['reason']}: {failure['message']}")
