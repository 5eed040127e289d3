"""How tokens are drawn from logits: temperature, the k most likely codes, guidance."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sampler:
    """How to draw. Random numbers are torch's global ones of the CPU.

    Attributes:
        temperature: divides the logits; below 1: more of the likely.
        top_k: only the k most likely codes; 0: all.
        guidance: scale s of classifier-free guidance (2207.12598): none + s (condition - none); 1: off.
        rounds: of the masked prior.
        choice_temperature: of the masked prior, see `Masked.sample`.
    """

    temperature: float = 1.0
    top_k: int = 0
    guidance: float = 1.0
    rounds: int = 12
    choice_temperature: float = 4.5

    def conditions(self, condition: Tensor, none: int) -> Tensor:
        """What the model is asked for: [B], or [2 B], the second half without condition, if there is guidance."""
        if self.guidance == 1:
            return condition
        return torch.cat([condition, torch.full_like(condition, none)])

    def draw(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Codes drawn from logits [..., K], and the logarithms of their probabilities: [...] each."""
        logits = logits.float() / self.temperature
        if self.top_k:
            lowest = logits.topk(min(self.top_k, logits.shape[-1])).values[..., -1:]
            logits = logits.masked_fill(logits < lowest, float("-inf"))
        chances = logits.log_softmax(-1)
        codes = (chances + gumbel(chances)).argmax(-1)  # the Gumbel-max trick: a draw from the distribution
        return codes, chances.gather(-1, codes[..., None])[..., 0]


def guided(logits: Tensor, rows: int, guidance: float) -> Tensor:
    """Logits [B, ...] of what was asked by `Sampler.conditions` for `rows` = B conditions."""
    if guidance == 1:
        return logits
    wanted, none = logits[:rows], logits[rows:]
    return none + guidance * (wanted - none)


def gumbel(like: Tensor) -> Tensor:
    """Noise of the standard Gumbel distribution, shaped like a tensor."""
    return -torch.empty(like.shape).exponential_().log().to(like.device)
