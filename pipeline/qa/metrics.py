"""Structural similarity, in torch; the other metrics need numpy alone and are in `statistics`."""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

# Wang et al. 2004: a Gaussian window of 11 pixels with sigma 1.5, constants 0.01 and 0.03 of the peak.
_REACH, _SIGMA = 5, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def ssim(originals: npt.NDArray[np.uint8], others: npt.NDArray[np.uint8]) -> list[float]:
    """Structural similarity of n pairs of images, in [-1, 1]: the mean over pixels and channels, as of torchmetrics.

    At the edges the window looks at the mirrored image; in images of less than 6 pixels a side it is smaller.

    Args:
        originals: [n, H, W, C].
        others: likewise.
    """
    x, y = (torch.from_numpy(images).permute(0, 3, 1, 2).float() for images in (originals, others))
    reach = min(_REACH, x.shape[-2] - 1, x.shape[-1] - 1)
    x, y = (pad(images, (reach,) * 4, mode="reflect") for images in (x, y))
    maps = torch.cat([x, y, x * x, y * y, x * y], dim=1)
    groups = maps.shape[1]  # one per map: four times as fast as the maps for images of one channel
    window = _gaussian(reach).repeat(groups, 1)
    maps = conv2d(conv2d(maps, window[:, None, :, None], groups=groups), window[:, None, None, :], groups=groups)
    mean_x, mean_y, xx, yy, xy = maps.chunk(5, dim=1)
    variances, covariance = xx - mean_x**2 + yy - mean_y**2, xy - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    structure = (2 * covariance + _C2) / (variances + _C2)
    return [float(value) for value in (luminance * structure).mean(dim=(1, 2, 3))]


def _gaussian(reach: int) -> Tensor:
    weights = torch.tensor([math.exp(-(i**2) / (2 * _SIGMA**2)) for i in range(-reach, reach + 1)])
    return weights / weights.sum()
