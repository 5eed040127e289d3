"""The transformer: who sees whom, and the same answers place by place as all at once."""

import pytest
import torch

from pipeline.prior.model import Cache, Geometry, Transformer

PLACES, CODES, CLASSES = 12, 20, 3


def model(*, causal: bool) -> Transformer:
    """A transformer of random weights, none of them zero, over 3 x 4 places."""
    torch.manual_seed(0)
    made = Transformer(Geometry(CODES, 3, 4, CLASSES, causal, dim=32, layers=2, heads=2)).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def inputs(rows: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randint(CODES, (rows, PLACES)), torch.arange(rows) % (CLASSES + 1)


def seen(causal: bool) -> torch.Tensor:
    """bool [N, N]: whether the logits of place i depend on the token at place j."""
    network, (tokens, condition) = model(causal=causal), inputs(1)
    before, columns = network(tokens, condition), []
    for place in range(PLACES):
        other = tokens.clone()
        other[0, place] = (other[0, place] + 1) % CODES
        columns.append((network(other, condition) != before).any(-1)[0])
    return torch.stack(columns, 1)


def test_causal_model_sees_the_tokens_before() -> None:
    assert seen(causal=True).equal(torch.ones(PLACES, PLACES).tril(-1).bool())


def test_bidirectional_model_sees_all_tokens() -> None:
    assert seen(causal=False).all()


@pytest.mark.parametrize("causal", [True, False])
def test_every_place_sees_the_condition(causal: bool) -> None:
    network, (tokens, _) = model(causal=causal), inputs(1)
    answers = [network(tokens, torch.tensor([condition])) for condition in range(CLASSES + 1)]
    assert all((answers[0] != other).any(-1).all() for other in answers[1:])


def test_place_by_place_equals_all_at_once() -> None:
    network, (tokens, condition) = model(causal=True), inputs()
    cache = Cache()
    given = [None, *tokens.T[:-1]]
    logits = torch.stack([network.next(last, condition, cache) for last in given], 1)
    assert cache.length == PLACES
    torch.testing.assert_close(logits, network(tokens, condition), rtol=1e-4, atol=1e-5)


def test_rotary_positions_know_offsets_alone() -> None:
    """The turn from a query's place to a key's is the same wherever both stand, and another for another offset."""
    turns = model(causal=False).turns
    relative = (turns[:, None].conj() * turns[None])[1:, 1:].reshape(3, 4, 3, 4, -1)
    torch.testing.assert_close(relative[0, 1, 1, 2], relative[1, 2, 2, 3])
    assert not torch.allclose(relative[0, 1, 1, 2], relative[0, 1, 1, 3])
    assert not torch.allclose(relative[0, 1, 1, 2], relative[0, 1, 2, 2])


@pytest.mark.parametrize("causal", [True, False])
def test_bfloat16_is_close_and_keeps_float_weights(causal: bool) -> None:
    network, (tokens, condition) = model(causal=causal), inputs()
    exact = network(tokens, condition)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(tokens, condition)
    assert rounded.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert torch.nn.functional.cosine_similarity(rounded.float(), exact, dim=-1).min() > 0.99


@pytest.mark.parametrize("causal", [True, False])
def test_fresh_network_keeps_its_scale(causal: bool) -> None:
    """However deep: logits of variance one, so that nothing has to be unlearned."""
    torch.manual_seed(0)
    fresh = Transformer(Geometry(500, 3, 4, 0, causal, 64, 8, 2))
    logits = fresh(torch.randint(500, (8, PLACES)), torch.zeros(8, dtype=torch.int64))
    assert logits.std().item() == pytest.approx(1, abs=0.2)
