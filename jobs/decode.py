"""`tokenmill decode`: rows of a run back to pictures."""

from typing import Annotated

import typer

from jobs.options import Settings, Store, out, storage_for
from pipeline.errors import UsageError


def main(
    output: Store,
    to: Annotated[str, typer.Option(metavar="URL", help="Folder or URL for the pictures.", show_default=False)],
    keys: Annotated[
        list[str] | None,
        typer.Option(
            "--keys", metavar="KEY", help="Rows of this key, or of @list.txt (or @URL). Repeatable.", show_default=False
        ),
    ] = None,
    sample: Annotated[int | None, typer.Option(min=1, help="So many rows by lot.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the lot.")] = 0,
    form: Annotated[str, typer.Option("--as", help="png or webp (files), or tar (a WebDataset).")] = "png",
    model: Annotated[
        str | None, typer.Option(metavar="REF", help="The VQ model; the one in job.json if not given.")
    ] = None,
    allow_torchscript: Annotated[
        bool, typer.Option("--allow-torchscript", help="Run the program that a TorchScript model is.")
    ] = False,
    settings: Settings = None,
) -> None:
    """Decode rows of a run, by key or by lot. File names tell shard, number in it, view and key."""
    from pipeline.decoding import DecodeConfig, decode
    from pipeline.exports.source import open_source

    if form not in ("png", "webp", "tar"):
        raise UsageError(f"--as must be png, webp or tar, got {form!r}")
    chosen = {"keys": tuple(keys or ()), "sample": sample, "seed": seed}
    config = DecodeConfig(to=to, form=form, model=model, allow_torchscript=allow_torchscript, **chosen)
    count = decode(open_source(storage_for(settings), output, partial=True), config)
    out.print(f"{count:,} pictures in {to}")
