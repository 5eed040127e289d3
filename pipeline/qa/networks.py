"""The networks that compare images: on the device, from weight files that the user names.

None ships with Tokenmill and none is downloaded; without its file a metric is not computed, and the evidence says so.
"""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.errors import UsageError
from pipeline.model.perceptual import SMALLEST_SIDE, PerceptualDistance
from pipeline.qa.config import QaConfig

AT_ONCE = 2  # pairs of images; at 1,024 pixels VGG16 takes 1 GB for one
MAX_FEATURES = 4096  # of an image; the report holds square matrices of that side
WITHOUT = {
    "lpips": "no weight file was given (qa.lpips_weights)",
    "rfid": "no weight file was given (qa.inception_weights)",
}

Images = npt.NDArray[np.uint8]


class Inception:
    """A network whose features speak for an image, as TorchScript: rFID is the distance of their distributions.

    It takes uint8 images [n, 3, H, W], scales them itself, and gives features [n, d]. Where `forward` has an argument
    `return_features` it is set, as the usual file of the FID papers' Inception of 2015 wants it.

    Args:
        path: the file. To load it is to run its code.
        sha256: of the file, in hexadecimal; no other content is loaded.
        device: where it runs.
        side: of the images that it will get (pixels).

    Raises:
        UsageError: the file cannot be read, is another, is no TorchScript, or does not give features.
    """

    def __init__(self, path: Path, sha256: str, device: torch.device, side: int) -> None:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UsageError(f"qa.inception_weights={path}: cannot be read ({error.strerror})") from error
        _check("qa.inception", path, hashlib.sha256(data).hexdigest(), sha256)
        try:
            self._module: Any = torch.jit.load(io.BytesIO(data), map_location=device).eval()  # type: ignore[no-untyped-call]
            names = {argument.name for argument in self._module.forward.schema.arguments}
            self._options = {"return_features": True} if "return_features" in names else {}
            found = self(torch.zeros(2, 3, side, side, dtype=torch.uint8, device=device))
        except RuntimeError as error:
            raise UsageError(
                f"qa.inception_weights={path}: must be a TorchScript module that takes uint8 images [n, 3, H, W], but "
                f"{side} pixels gave: {error}"
            ) from error
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != 2 or found.shape[1] > MAX_FEATURES:
            shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise UsageError(
                f"qa.inception_weights={path}: must give features [n, d] with d at most {MAX_FEATURES}, got {shape} "
                "for 2 images"
            )

    def __call__(self, images: Tensor) -> Any:
        """Features [n, d] of uint8 images [n, 3, H, W]."""
        # unoptimised: else the first calls would differ from later ones
        with torch.inference_mode(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            return self._module(images, **self._options)


@dataclass(frozen=True, slots=True)
class Networks:
    """What there is to compare images with; its methods run where they are called.

    Attributes:
        device: of the networks.
        weight_files: metric -> sha256 of its weight file.
    """

    device: torch.device | str = "cpu"
    distance: PerceptualDistance | None = None
    inception: Inception | None = None
    weight_files: Mapping[str, str] = field(default_factory=dict)

    @property
    def not_computed(self) -> dict[str, str]:
        """Metric -> why."""
        return {metric: why for metric, why in WITHOUT.items() if metric not in self.weight_files}

    def lpips(self, originals: Images, others: Images) -> list[float | None]:
        """Perceptual distance of each pair of images [n, H, W, 3]; None without the network."""
        if self.distance is None:
            return [None] * len(originals)
        found: list[float | None] = []
        for start in range(0, len(originals), AT_ONCE):
            pair = (self._planes(images[start : start + AT_ONCE]) for images in (originals, others))
            with torch.inference_mode():
                found += self.distance(*(planes.float().div(127.5).sub(1) for planes in pair)).tolist()
        return found

    def features(self, images: Images) -> list[list[float] | None]:
        """Features [d] of each image [n, H, W, 3]; None without the network."""
        if self.inception is None:
            return [None] * len(images)
        found: list[list[float] | None] = []
        for start in range(0, len(images), AT_ONCE):
            found += self.inception(self._planes(images[start : start + AT_ONCE])).float().tolist()
        return found

    def _planes(self, images: Images) -> Tensor:
        return torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2).contiguous()


def load_networks(config: QaConfig, device: torch.device, side: int) -> Networks:
    """The networks whose weight files the user names.

    Args:
        config: names the files.
        device: where they will run.
        side: of the images (pixels).

    Raises:
        UsageError: a file cannot be read, or does not hold what it should; or the images are too small.
    """
    distance, inception, files = None, None, {}
    if config.lpips_weights is not None:
        distance = _lpips(config.lpips_weights, side).to(device)
        files["lpips"] = _digest(config.lpips_weights)
        if config.lpips_sha256 is not None:
            _check("qa.lpips", config.lpips_weights, files["lpips"], config.lpips_sha256)
    if config.inception_weights is not None:
        assert config.inception_sha256 is not None, "QaConfig sees to it"
        inception = Inception(config.inception_weights, config.inception_sha256, device, side)
        files["rfid"] = config.inception_sha256
    return Networks(device, distance, inception, files)


def _lpips(path: Path, side: int) -> PerceptualDistance:
    if side < SMALLEST_SIDE:
        raise UsageError(f"image.size must be at least {SMALLEST_SIDE} with qa.lpips_weights, got {side}")
    distance = PerceptualDistance(path)
    if not distance.is_lpips:
        raise UsageError(
            f"qa.lpips_weights={path}: must hold LPIPS's learned heads (lin0.model.1.weight, ... of LPIPS v0.1, vgg) "
            "beside VGG16: without them the distance is not LPIPS"
        )
    return distance


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(option: str, path: Path, found: str, wanted: str) -> None:
    if found != wanted:
        raise UsageError(f"{option}_weights={path}: its sha256 must be {wanted} ({option}_sha256), got {found}")
