"""Held-out bits, with and without a model, on distributions whose entropy is known."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from pipeline.prior.causal import Causal
from pipeline.prior.entropy import Counts
from pipeline.prior.masked import Masked, hidden_after, random_sets
from pipeline.prior.model import Geometry, Transformer

CODES, PLACES = 3, 4
WORDS = torch.tensor(list(product(range(CODES), repeat=PLACES)))  # every row there can be


def joint() -> Tensor:
    """Probabilities of all rows: far from independent."""
    torch.manual_seed(3)
    return torch.randn(len(WORDS)).mul(2).softmax(0)


class Oracle(Transformer):
    """Knows the joint distribution: the exact conditionals of each place, given what is not hidden (or is before)."""

    def __init__(self, probabilities: Tensor, *, causal: bool) -> None:
        super().__init__(Geometry(CODES, 2, 2, 0, causal, 8, 1, 1))
        self.probabilities = probabilities

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        places = torch.arange(PLACES)
        known = tokens[:, None] != CODES  # [B, asked, place]
        if self.geometry.causal:
            known = known & (places[None, :] < places[:, None])
        fits = ((WORDS[None, None] == tokens[:, None, None]) | ~known[:, :, None]).all(-1)  # [B, asked, word]
        mine = WORDS.T[:, :, None] == torch.arange(CODES)  # [asked, word, code]
        return torch.einsum("baw,awk,w->bak", fits.float(), mine.float(), self.probabilities).log()


def sample_rows(count: int) -> Tensor:
    torch.manual_seed(4)
    return torch.multinomial(joint(), count, replacement=True)


def mean_nats(prior: Causal | Masked, tokens: Tensor) -> Tensor:
    condition = torch.zeros(len(tokens), dtype=torch.int64)
    torch.manual_seed(5)
    return torch.stack([prior.nats(tokens, condition, draw) for draw in range(prior.draws)]).mean(0)


def test_causal_code_length_is_exact() -> None:
    rows = sample_rows(200)
    nats = mean_nats(Causal(Oracle(joint(), causal=True)), WORDS[rows])
    torch.testing.assert_close(nats, -joint()[rows].log(), rtol=1e-4, atol=1e-4)


def test_masked_bound_is_the_entropy_if_the_conditionals_are_right() -> None:
    """Then every order costs the same, so the bound is tight."""
    rows = sample_rows(4000)
    estimate = mean_nats(Masked(Oracle(joint(), causal=False)), WORDS[rows]).mean().item()
    assert estimate == pytest.approx(-joint()[rows].log().mean().item(), abs=0.03)


def test_masked_bound_is_above_the_entropy_if_they_are_wrong() -> None:
    """Here by exactly the divergence: the wrong conditionals are those of another joint distribution."""
    rows, wrong = sample_rows(4000), (joint() + 1 / len(WORDS)) / 2
    estimate = mean_nats(Masked(Oracle(wrong, causal=False)), WORDS[rows]).mean().item()
    assert estimate == pytest.approx(-wrong[rows].log().mean().item(), abs=0.03)
    assert estimate > -joint()[rows].log().mean().item() + 0.05


@pytest.mark.parametrize(("done", "hidden"), [(0.0, 16), (0.5, 12), (2 / 3, 8), (0.99, 1), (1.0, 1)])
def test_cosine_schedule(done: float, hidden: int) -> None:
    assert hidden_after(torch.tensor(done), 16) == hidden


def test_hidden_sets_have_their_size_and_no_favourite_place() -> None:
    torch.manual_seed(0)
    count = torch.tensor([1, 3, 8]).repeat(4000)
    sets = random_sets(8, count)
    assert sets.sum(1).equal(count)
    assert sets[::3].float().mean(0).sub(1 / 8).abs().max() < 0.025
    assert sets[1::3].float().mean(0).sub(3 / 8).abs().max() < 0.025


def counted(rows: Tensor, codes: int = 8) -> Counts:
    counts = Counts(rows.shape[1], codes)
    for some in rows.split(7):
        counts.add(some)
    return counts


def test_entropies_of_noise() -> None:
    torch.manual_seed(0)
    rows = torch.randint(8, (3000, 5))
    baselines = counted(rows[:2500]).baselines(rows[2500:])
    assert baselines.unigram == pytest.approx(3, abs=0.01)
    assert baselines.by_position == pytest.approx(3, abs=0.01)


def test_entropies_of_places_that_differ() -> None:
    """Each place has two codes of its own: one bit by position, eight codes in all."""
    torch.manual_seed(0)
    rows = torch.randint(2, (600, 4)) + 2 * torch.arange(4)
    baselines = counted(rows[:500]).baselines(rows[500:])
    assert baselines.unigram == pytest.approx(3, abs=0.02)
    assert baselines.by_position == pytest.approx(1, abs=0.02)
    assert baselines.best == baselines.by_position


def test_few_rows_leave_the_places_with_the_unigram() -> None:
    torch.manual_seed(0)
    rows = (torch.randint(8, (40, 50)) ** 2) // 8
    baselines = counted(rows[:3]).baselines(rows[3:])
    assert baselines.by_position <= baselines.unigram + 1e-4
    assert baselines.unigram < 2.9


def test_code_never_seen_costs_much_but_not_everything() -> None:
    baselines = counted(torch.zeros(50, 4, dtype=torch.int64)).baselines(torch.full((2, 4), 7))
    assert math.log2(8) <= baselines.unigram < 20
