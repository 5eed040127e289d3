"""Train a small VQ model on photographs: plain VQ-VAE (van den Oord et al. 2017, 1711.00937), no discriminator.

* The encoder and decoder learn by AdamW on L1 + L2 + commitment, straight through the quantizer; on request with a
  perceptual term too, as in VQGAN (Esser et al. 2021, 2012.09841).
* The codebook starts as k-means on the latents of an autoencoder trained for a few hundred steps. Then it learns
  without gradients, by moving averages of the vectors that each code attracts (1711.00937, appendix A.1), or with
  them, by the codebook loss (equation 3). Codes that attract none are restarted.
* Crops are small, as they would be cut from images of a few hundred pixels; the last steps use larger ones, so that
  the model sees less border.

Same images in the same order, same configuration, same kind of machine and thread count: same weights, interrupted or
not. `fit` trains in memory; `fit_folder` keeps the model, the log and what it takes to go on in a folder.

images -> CropSource -> Trainer (VQModel, OnlineCodebook, perceptual distance) -> folder (state, log, curve, strip)
"""

from pipeline.fit.codebook import OnlineCodebook
from pipeline.fit.config import DEMO_GEOMETRY, FitConfig
from pipeline.fit.crops import CropSource
from pipeline.fit.folder import FitTask, fit_folder
from pipeline.fit.source import ImageSource
from pipeline.fit.trainer import FitReport
from pipeline.fit.training import Training, fit

__all__ = [
    "DEMO_GEOMETRY",
    "CropSource",
    "FitConfig",
    "FitReport",
    "FitTask",
    "ImageSource",
    "OnlineCodebook",
    "Training",
    "fit",
    "fit_folder",
]
