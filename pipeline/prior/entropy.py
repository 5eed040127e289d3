"""What the tokens cost without a model: the bits that a prior has to beat.

* Unigram: each code has one probability, wherever it stands: (count + a) / (tokens + a K).
* By position: each place of the grid has its own, drawn towards the unigram where a code was seldom seen there
  (Dirichlet smoothing): (count at the place + b unigram) / (rows + b).

Both are counted on the rows that are trained on and measured on those held out. a and b are those that are best on the
held-out rows: an advantage that no model gets, so a prior that wins does not win against careless smoothing.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_ADDED = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)  # counts added to every code
_DRAWN = (0.1, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 1e4, 1e6)  # rows that the unigram stands for at every place


@dataclass(frozen=True, slots=True)
class Baselines:
    """Bits per token of the held-out rows.

    Attributes:
        unigram: one distribution for all places.
        by_position: one for each place.
    """

    unigram: float
    by_position: float

    @property
    def best(self) -> float:
        """What a prior has to beat."""
        return min(self.unigram, self.by_position)


class Counts:
    """How often each code stands at each place: int32 [N, K], 4 bytes of memory for each.

    Args:
        places: N.
        codes: K.
    """

    def __init__(self, places: int, codes: int) -> None:
        self.rows = 0
        self._counts = torch.zeros(places, codes, dtype=torch.int32)

    def add(self, tokens: Tensor) -> None:
        """Count rows: int64 [n, N]."""
        self.rows += len(tokens)
        self._counts.scatter_add_(1, tokens.T, torch.ones_like(tokens.T, dtype=torch.int32))

    def baselines(self, held_out: Tensor) -> Baselines:
        """The bits of other rows: int64 [n, N]."""
        codes = self._counts.shape[1]
        totals = self._counts.sum(0, dtype=torch.float64)
        smoothed = [(totals + a) / (totals.sum() + a * codes) for a in _ADDED]
        unigrams = [_bits(unigram[held_out]) for unigram in smoothed]
        unigram = smoothed[unigrams.index(min(unigrams))][held_out]
        here = self._counts.gather(1, held_out.T).T.double()
        return Baselines(min(unigrams), min(_bits((here + b * unigram) / (self.rows + b)) for b in _DRAWN))


def _bits(probabilities: Tensor) -> float:
    return -torch.log2(probabilities).mean().item()
