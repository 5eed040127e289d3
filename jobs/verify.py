"""`tokenmill verify`: recount a run with code that shares nothing with the writer."""

import sys
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from jobs.options import AsJson, Settings, Store, out, print_json, storage_for


def main(
    output: Store,
    deep: Annotated[
        bool,
        typer.Option("--deep/--quick", help="Recount the source shards too, key by key; --quick reads the parts only."),
    ] = True,
    threads: Annotated[int, typer.Option(min=1, help="Shards checked at once (threads).")] = 4,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Check that every sample is a row or a reject, once. Exit code 0 if so, 3 if anything is amiss."""
    from pipeline.verify import verify

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("verifying", total=None)
        result = verify(
            storage_for(settings),
            output,
            source=deep,
            threads=threads,
            on_shard=lambda done, total: progress.update(task, completed=done, total=total),
        )
    for finding in result.findings:
        out.print(f"{finding.kind.value}: {finding.shard}: {finding.message}")
    samples = [account.samples for account in result.accounts if account.samples is not None]
    names = ("rows", "rejects", "filtered")
    rows, rejects, filtered = (sum(getattr(account, name) for account in result.accounts) for name in names)
    unwanted = f", {filtered:,} filtered" if filtered else ""
    recounted = f"{sum(samples):,} samples recounted, " if samples else ""
    verdict = "all accounted for, once" if result.ok else f"{len(result.findings):,} findings"
    out.print(f"{len(result.accounts):,} shards: {recounted}{rows:,} rows, {rejects:,} rejects{unwanted}: {verdict}")
    if as_json:
        findings = [{"kind": f.kind.value, "shard": f.shard, "message": f.message} for f in result.findings]
        print_json(
            {"ok": result.ok, "accounts": [asdict(account) for account in result.accounts], "findings": findings}
        )
    raise typer.Exit(0 if result.ok else 3)
