"""The log of a fit."""

from pathlib import Path

from pipeline.training.log import BLUE, GREEN, RED, Curve, Log

_FORMATS = {
    "step": "d",
    "loss": ".5f",
    "psnr": ".3f",
    "usage": ".4f",
    "perplexity": ".1f",
    "held_out_psnr": ".3f",
    "held_out_usage": ".4f",
}
_PANELS = {
    "loss": [Curve("loss", "loss", RED)],
    "PSNR (dB)": [Curve("psnr", "training crops", BLUE), Curve("held_out_psnr", "held out", GREEN)],
}


def fit_log(folder: Path, step: int) -> Log:
    """The log of a fit in a folder, up to `step`."""
    return Log(folder, step, _FORMATS, _PANELS)
