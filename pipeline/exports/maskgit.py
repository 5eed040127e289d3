"""`maskgit`: WebDataset with `vq_feat.npy`, for valeoai/Halton-MaskGIT (and Maskgit-pytorch).

Layout (`Dataset/dataloader.py`, data `webdata`): members `{key}.vq_feat.npy`, int64 [h, w], and `{key}.txt`; beside
them what `webdataset` has.
"""

import numpy as np
import numpy.typing as npt

from pipeline.exports.source import Source
from pipeline.exports.webdataset import WebDataset


class MaskGit(WebDataset):
    """Token grids under the name that Halton-MaskGIT reads."""

    member = "vq_feat.npy"
    advice = (
        "Halton-MaskGIT globs sa_feat/*.tar, cc12m_feat/*.tar and the like: export into one of these folders; its text "
        "model ends without {key}.txt_feat.npy, which you must add"
    )

    def dtype(self, source: Source) -> npt.DTypeLike:  # noqa: ARG002 - it is the same for every run
        return np.int64
