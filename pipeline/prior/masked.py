"""The MaskGIT-style prior: tokens in any order, many at once (2202.04200).

What its held-out figure is. Reveal the tokens of a row x in a random order s, each predicted from those revealed
before: given s that is a normalised distribution p_s(x), and the mixture of them over all orders is one too. Its code
length is -log E_s p_s(x) <= E_s[-log p_s(x)] (Jensen), the mean over the orders. In a uniformly random order, when k of
the N tokens are hidden, these are a random set of k and the next one is any of them, so

    E_s[-log p_s(x)] = sum over k = 1..N of E_hidden[ 1/k * sum over hidden of -log p(x_i | the others) ]
                     = N * E_k E_hidden[ 1/k * sum over hidden of -log p(x_i | the others) ],  k uniform in 1..N

(the order-agnostic bound of 1310.1757 and 2110.02037). So one draw of k and of the hidden set, weighted by N / k, is an
unbiased estimate of an upper bound of the true code length: comparable with the unigram's, and with the exact one of
the causal prior; the true one can only be lower.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pipeline.prior.model import Transformer
from pipeline.prior.sampling import Sampler, guided, gumbel


class Masked:
    """Loss, bound of the code length and samples of a bidirectional transformer."""

    exact = False
    draws = 8  # of how many are hidden, in as many equal parts of 1..N

    def __init__(self, model: Transformer) -> None:
        self.model = model

    def loss(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Mean over hidden tokens of their negative log likelihood (nats), a scalar; hidden by the cosine schedule."""
        rows, places = tokens.shape
        hidden = random_sets(places, hidden_after(torch.rand(rows), places)).to(tokens.device)
        logits = self._logits(tokens, hidden, condition)
        return cross_entropy(logits[hidden].float(), tokens[hidden])

    def nats(self, tokens: Tensor, condition: Tensor, draw: int) -> Tensor:
        """One draw's estimate of the bound of each row's negative log likelihood (nats): float32 [B].

        Args:
            tokens: int64 [B, N].
            condition: int64 [B].
            draw: in [0, `draws`): from which part of 1..N the number of hidden tokens is drawn. The mean over all of
                them is as unbiased as that of so many free draws, and varies less.
        """
        rows, places = tokens.shape
        count = ((torch.rand(rows) + draw) / self.draws * places).long().clamp(max=places - 1) + 1
        hidden = random_sets(places, count).to(tokens.device)
        logits = self._logits(tokens, hidden, condition).float()
        nats = cross_entropy(logits.transpose(1, 2), tokens, reduction="none")
        return (nats * hidden).sum(1) * (places / count.to(tokens.device))

    @torch.no_grad()
    def sample(self, condition: Tensor, sampler: Sampler) -> Tensor:
        """Tokens int64 [B, N] for conditions [B]: all at once, but in each round the least certain are hidden again.

        Certainty is the logarithm of the probability of the code drawn, plus Gumbel noise times
        `sampler.choice_temperature`, which falls to zero with the rounds.
        """
        geometry = self.model.geometry
        tokens = condition.new_full((len(condition), geometry.places), geometry.mask)
        conditions = sampler.conditions(condition, geometry.none)
        for number in range(1, sampler.rounds + 1):
            asked = tokens.repeat(len(conditions) // len(condition), 1)
            logits = guided(self.model(asked, conditions), len(condition), sampler.guidance)
            hidden = tokens == geometry.mask
            drawn, certainty = sampler.draw(logits)
            tokens = torch.where(hidden, drawn, tokens)
            done = number / sampler.rounds
            if done < 1:
                certainty = certainty + sampler.choice_temperature * (1 - done) * gumbel(certainty)
                certainty = certainty.masked_fill(~hidden, math.inf)
                # Fewer than before, so that every round reveals something.
                count = min(int(hidden_after(torch.tensor(done), geometry.places)), int(hidden[0].sum()) - 1)
                tokens.scatter_(1, certainty.topk(max(count, 0), largest=False).indices, geometry.mask)
        return tokens

    def _logits(self, tokens: Tensor, hidden: Tensor, condition: Tensor) -> Tensor:
        logits: Tensor = self.model(tokens.masked_fill(hidden, self.model.geometry.mask), condition)
        return logits


def hidden_after(done: Tensor, places: int) -> Tensor:
    """The cosine schedule: how many of N places are hidden, in 1..N, when a part in [0, 1) of the work is done."""
    return (torch.cos(done * (math.pi / 2)) * places).ceil().long().clamp(1, places)


def random_sets(places: int, count: Tensor) -> Tensor:
    """A uniformly random set of places for each row: bool [B, N], `count` [B] of them true."""
    ranks = torch.rand(len(count), places).argsort(1).argsort(1)
    return ranks < count[:, None]
