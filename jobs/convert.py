"""`tokenmill convert`: a checkpoint of another code into a model folder."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.options import AsJson, out, print_json


def main(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CKPT",
            help="A .ckpt or .pt of taming-transformers, latent-diffusion or LlamaGen; or the folder of Chameleon, "
            "Emu3 or Janus in transformers' layout.",
            show_default=False,
        ),
    ],
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="The model folder to write.", show_default=False)],
    config: Annotated[
        str | None,
        typer.Option(metavar="X", help="The checkpoint's YAML, or LlamaGen's VQ-8 or VQ-16.", show_default=False),
    ] = None,
    averages: Annotated[
        bool | None,
        typer.Option(
            "--averages/--raw",
            help="Where there are moving averages of the weights, take these or the weights; if not given the "
            "averages, but of LlamaGen the weights, as its own extraction of codes does.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Convert a checkpoint into a model folder, without running anything that it holds."""
    from pipeline.tokenizers.convert import convert

    made = convert(checkpoint, to, config, averages=averages)
    tokenizer = made.tokenizer
    out.print(
        f"{to}: {type(tokenizer).__name__}, f{tokenizer.downsample}, {tokenizer.codebook_size:,} codes, "
        f"{'moving averages of ' * made.averaged}weights {made.weights}"
    )
    if made.left_out:
        out.print("left out    " + ", ".join(f"{count} {word}" for word, count in sorted(made.left_out.items())))
    if as_json:
        print_json(
            {
                "folder": str(to),
                "weights": made.weights,
                "codes": tokenizer.codebook_size,
                "downsample": tokenizer.downsample,
                "averaged": made.averaged,
                "left_out": dict(made.left_out),
            }
        )
