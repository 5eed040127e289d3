"""Drawing tokens: from the right distribution, and never a MASK."""

import pytest
import torch

from pipeline.prior.causal import Causal
from pipeline.prior.masked import Masked
from pipeline.prior.model import Geometry, Transformer
from pipeline.prior.sampling import Sampler, guided

LOGITS = torch.tensor([2.0, 0.0, 1.0, -1.0])
N = 6


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        (Sampler(), LOGITS.softmax(0)),
        (Sampler(temperature=0.5), (LOGITS * 2).softmax(0)),
        (Sampler(top_k=2), torch.tensor([2.0, -torch.inf, 1.0, -torch.inf]).softmax(0)),
        (Sampler(top_k=9), LOGITS.softmax(0)),
    ],
)
def test_codes_come_as_often_as_they_should(sampler: Sampler, expected: torch.Tensor) -> None:
    torch.manual_seed(0)
    codes, chances = sampler.draw(LOGITS.expand(20_000, 4))
    assert (torch.bincount(codes, minlength=4) / 20_000).sub(expected).abs().max() < 0.015
    torch.testing.assert_close(chances.exp(), expected[codes])


def test_guidance_goes_from_none_through_the_condition() -> None:
    condition, none = torch.tensor([[1.0, 5.0]]), torch.tensor([[2.0, 3.0]])
    assert guided(torch.cat([condition, none]), 1, 3.0).tolist() == [[-1.0, 9.0]]
    assert guided(condition, 1, 1.0) is condition
    asked = Sampler(guidance=3.0).conditions(torch.tensor([0, 4]), 7)
    assert asked.tolist() == [0, 4, 7, 7]


def network(*, causal: bool) -> Transformer:
    torch.manual_seed(0)
    made = Transformer(Geometry(9, 2, 3, 2, causal, 16, 1, 2)).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("rounds", [1, 4, 50])
def test_masked_samples_have_a_code_everywhere(rounds: int, guidance: float) -> None:
    torch.manual_seed(1)
    tokens = Masked(network(causal=False)).sample(torch.tensor([0, 1, 2]), Sampler(rounds=rounds, guidance=guidance))
    assert tokens.shape == (3, N)
    assert tokens.max() < 9


class Asked(Transformer):
    """Notes how many tokens are hidden whenever it is asked."""

    hidden: list[int]

    def forward(self, tokens: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        self.hidden.append(int((tokens == self.geometry.mask).sum(1).unique().item()))
        return super().forward(tokens, condition)


def test_masked_rounds_follow_the_cosine() -> None:
    torch.manual_seed(0)
    asked = Asked(Geometry(9, 4, 4, 0, False, 16, 1, 2)).eval()
    asked.hidden = []
    Masked(asked).sample(torch.zeros(2, dtype=torch.int64), Sampler(rounds=4))
    assert asked.hidden == [16, 15, 12, 7]


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_causal_samples_are_likely_under_their_own_model(guidance: float) -> None:
    """The frequencies of the first two tokens are the model's own probabilities, also through the cache."""
    model, rows = network(causal=True), 3000
    torch.manual_seed(1)
    condition = torch.zeros(rows, dtype=torch.int64)
    tokens = Causal(model).sample(condition, Sampler(guidance=guidance))
    given = tokens[:1].repeat(2, 1)
    asked = (
        guided(model(given, torch.tensor([0, 2])), 1, guidance) if guidance != 1 else model(given[:1], condition[:1])
    )
    expected = asked[0].softmax(-1)
    first = torch.bincount(tokens[:, 0], minlength=9) / rows
    assert first.sub(expected[0]).abs().max() < 0.03
    same = tokens[tokens[:, 0] == tokens[0, 0], 1]
    assert (torch.bincount(same, minlength=9) / len(same)).sub(expected[1]).abs().max() < 0.12
