"""Train a small token prior on a finished run: the proof that its tokens train a model, and an example to start from.

* `gpt`: a causal transformer (LlamaGen 2406.06525). Its held-out bits per token are exact.
* `maskgit`: a bidirectional one that predicts hidden tokens (2202.04200). Its held-out bits per token are an upper
  bound of the true ones, by the mean over orders (`masked`).

Both are the same network (`model`), unconditional or on labels, with classifier-free guidance. They are held against
what the tokens cost without a model (`entropy`) on rows that neither has seen (`corpus`).

Same rows, same configuration, same kind of CPU and thread count: same weights, interrupted or not.

TokenDataset -> Corpus (split, census) -> Training (Transformer, Causal or Masked) -> folder (state, log, pictures)
"""

from pipeline.prior.config import PriorConfig
from pipeline.prior.folder import PriorTask, train_prior
from pipeline.prior.training import PriorReport, Training

__all__ = ["PriorConfig", "PriorReport", "PriorTask", "Training", "train_prior"]
