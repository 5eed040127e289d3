"""`tokenmill fit`: train a small VQ model on your own images."""

import csv
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.options import Settings, Shards, out
from pipeline.errors import UsageError


def main(
    output: Annotated[Path, typer.Option(help="Folder that receives the model (diffusers layout) and log.csv.")],
    shards: Shards = None,
    images: Annotated[Path | None, typer.Option(help="A folder of image files, instead of shards.")] = None,
    half: Annotated[bool, typer.Option(help="Store the weights as float16: half the size on disk.")] = True,
    settings: Settings = None,
) -> None:
    """Train a VQ model (van den Oord et al. 2017) on shards or a folder of images. --set steps=..., seed=..., ..."""
    import torch

    from pipeline.fit import FitConfig, FitReport, fit
    from pipeline.model import VQModel

    config = _config(FitConfig, settings or [])
    output.mkdir(parents=True, exist_ok=True)
    with open(output / "log.csv", "w", newline="") as file:
        log = csv.writer(file)
        log.writerow(["step", "loss", "psnr", "usage", "perplexity"])

        def report(now: FitReport, model: VQModel) -> None:
            log.writerow([now.step, f"{now.loss:.5f}", f"{now.psnr:.3f}", f"{now.usage:.4f}", f"{now.perplexity:.1f}"])
            file.flush()
            out.print(
                f"step {now.step:,}/{config.steps:,}  loss {now.loss:.4f}  PSNR {now.psnr:.2f} dB  "
                f"codes used {now.usage:.1%}  perplexity {now.perplexity:.0f}"
            )
            if now.step % (5 * config.report_interval) == 0 or now.step == config.steps:
                model.save_pretrained(output, torch.float16 if half else torch.float32)

        fit(_images(shards, images), config, report)
    out.print(f"model in {output}")


def _config(kind: Any, settings: list[str]) -> Any:
    """The training configuration with `KEY=VALUE` settings."""
    import yaml
    from pydantic import ValidationError

    values = {}
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator or key not in kind.model_fields:
            raise UsageError(f"--set must be one of {', '.join(kind.model_fields)} as KEY=VALUE, got {setting!r}")
        values[key] = yaml.safe_load(text)
    try:
        return kind(**values)
    except ValidationError as error:
        raise UsageError("; ".join(problem["msg"] for problem in error.errors())) from error


def _images(shards: list[str] | None, folder: Path | None) -> Iterator[Any]:
    """RGB images, uint8 [H, W, 3], of shards or of a folder; what cannot be decoded is left out."""
    import numpy as np

    from pipeline.images import ImageConfig
    from pipeline.images.decode import decode
    from pipeline.images.reasons import BadImage

    if (shards is None) == (folder is None):
        raise UsageError("fit needs either --shards or --images")
    for data in _files_of_folder(folder) if folder is not None else _files_of_shards(shards or []):
        with suppress(BadImage):
            yield np.asarray(decode(data, ImageConfig()))


def _files_of_folder(folder: Path) -> Iterator[bytes]:
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    return (path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file())


def _files_of_shards(specs: list[str]) -> Iterator[bytes]:
    from pipeline.errors import Reject
    from pipeline.images import find_image
    from pipeline.shards.manifest import freeze
    from pipeline.shards.tar import TarReader
    from pipeline.storage import Storage

    storage = Storage()
    for shard in freeze(storage, specs):
        blob = shard.blob()
        with storage.stream(blob) as stream:
            for sample in TarReader(stream, url=shard.url, size=blob.size):
                found = find_image(sample.members)
                if not isinstance(found, Reject):
                    yield found
