"""`tokenmill` (or `python -m jobs`): the commands, and what their endings mean.

Exit codes: 0 every shard committed; 1 failed; 2 bad usage or configuration; 3 finished, but shards are quarantined or a
gate failed; 4 stopped, run again to resume.
"""

import sys
from importlib.metadata import version
from typing import Annotated

import typer
from rich.console import Console

from jobs import bench, convert, decode, demo, export, fit, plan, prior, report, run, status, submit, verify
from jobs.options import options_help
from pipeline.errors import TokenmillError, UsageError

app = typer.Typer(
    name="tokenmill",
    help="Turn WebDataset shards of images into Parquet datasets of visual tokens: exactly once, with provenance.",
    epilog="Exit codes: 0 done; 1 failed; 2 bad usage or configuration; 3 finished, but shards are quarantined or a "
    "gate failed; 4 stopped, run again to resume.",
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("demo")(demo.main)
app.command("plan", epilog=options_help())(plan.main)
app.command("bench", epilog=options_help())(bench.main)
app.command("run", epilog=options_help())(run.main)
app.command("submit", epilog=options_help())(submit.main)
app.command("status")(status.main)
app.command("verify")(verify.main)
app.command("report")(report.main)
app.command("export")(export.main)
app.command("decode")(decode.main)
app.command("fit")(fit.main)
app.command("prior")(prior.main)
app.command("convert")(convert.main)


@app.callback(invoke_without_command=True)
def _root(show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if show_version:
        print(version("tokenmill"))
        raise typer.Exit


def main() -> None:
    """Run the command line; errors become one message and an exit code."""
    try:
        app()
    except UsageError as error:
        _complain(error)
        sys.exit(2)
    except TokenmillError as error:
        _complain(error)
        sys.exit(1)


def _complain(error: TokenmillError) -> None:
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)
    console.print(f"error: {error}", style="bold red")


if __name__ == "__main__":
    main()
