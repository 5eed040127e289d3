"""The GPT-style prior: tokens in reading order, each from those before it (LlamaGen, 2406.06525)."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pipeline.prior.model import Cache, Transformer
from pipeline.prior.sampling import Sampler, guided


class Causal:
    """Loss, code length and samples of a causal transformer."""

    exact = True
    draws = 1  # there is nothing to average over

    def __init__(self, model: Transformer) -> None:
        self.model = model

    def loss(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Mean negative log likelihood of the tokens [B, N] (nats), a scalar."""
        logits = self.model(tokens, condition)
        return cross_entropy(logits.float().flatten(0, 1), tokens.flatten())

    def nats(self, tokens: Tensor, condition: Tensor, draw: int) -> Tensor:  # noqa: ARG002  there is one order
        """Negative log likelihood of each row (nats): float32 [B]; exact, by the chain rule."""
        logits = self.model(tokens, condition).float()
        return cross_entropy(logits.transpose(1, 2), tokens, reduction="none").sum(1)

    @torch.no_grad()
    def sample(self, condition: Tensor, sampler: Sampler) -> Tensor:
        """Tokens int64 [B, N] for conditions [B], one place after the other."""
        cache, tokens = Cache(), list[Tensor]()
        conditions = sampler.conditions(condition, self.model.geometry.none)
        for _ in range(self.model.geometry.places):
            last = tokens[-1].repeat(len(conditions) // len(condition)) if tokens else None
            logits = guided(self.model.next(last, conditions, cache), len(condition), sampler.guidance)
            tokens.append(sampler.draw(logits)[0])
        return torch.stack(tokens, 1)
