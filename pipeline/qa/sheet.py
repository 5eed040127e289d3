"""Sheets of pictures: originals above their reconstructions, with key and PSNR; or pictures alone."""

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pipeline.qa.samples import Sampled

GAP, CAPTION = 8, 22  # pixels
INK, PAPER = (30, 30, 30), (255, 255, 255)


def contact_sheet(samples: Sequence[Sampled], path: Path, columns: int = 4) -> None:
    """Draw `samples` as a PNG, `columns` side by side, each original over its reconstruction.

    Raises:
        ValueError: there is nothing to draw.
    """
    if not samples:
        raise ValueError("a contact sheet needs at least one sample")
    height, width = samples[0].original.shape[:2]
    cell_width, cell_height = width + GAP, 2 * height + CAPTION + GAP
    rows = -(-len(samples) // columns)
    columns = min(columns, len(samples))
    sheet = Image.new("RGB", (columns * cell_width + GAP, rows * cell_height + GAP + CAPTION), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    draw.text((GAP, 4), "original above, decoded from the stored tokens below", INK, font)
    for number, sample in enumerate(samples):
        left = GAP + (number % columns) * cell_width
        top = GAP + CAPTION + (number // columns) * cell_height
        sheet.paste(Image.fromarray(sample.original), (left, top))
        sheet.paste(Image.fromarray(sample.reconstruction), (left, top + height))
        draw.text((left, top + 2 * height + 2), f"{sample.key}   PSNR {sample.psnr:.1f} dB", INK, font)
    sheet.save(path)


def picture_grid(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size as rows of a grid that is about as high as it is wide.

    Raises:
        ValueError: there is nothing to draw.
    """
    if not pictures:
        raise ValueError("a grid of pictures needs at least one")
    columns = math.ceil(math.sqrt(len(pictures)))
    width, height = pictures[0].width + GAP, pictures[0].height + GAP
    sheet = Image.new("RGB", (columns * width - GAP, -(-len(pictures) // columns) * height - GAP), PAPER)
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number % columns * width, number // columns * height))
    return sheet
