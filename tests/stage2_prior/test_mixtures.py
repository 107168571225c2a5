"""Classes between classes: the ends are the classes themselves, and what is between depends on both."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.core.errors import UserError
from stage2_prior.prior import Mixture
from stage2_prior.priors import PRIORS
from stage2_prior.transformer import between

WEIGHTS = torch.tensor([0.0, 0.1, 0.5, 0.8, 1.0])


@pytest.fixture(params=list(PRIORS))
def prior(make_prior, request):
    return make_prior(request.param)


def vectors(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_ends_are_exact(dtype):
    a, b = vectors(64, 32, dtype=dtype), vectors(64, 32, seed=1, dtype=dtype)
    for end, expected in ((0.0, a), (1.0, b)):
        assert between(a, b, torch.full((64,), end)).equal(expected)
        assert between(a, a, torch.full((64,), end)).equal(a)
        assert between(a, -a, torch.full((64,), end)).equal(a if end == 0 else -a)


def test_the_way_is_an_arc():
    a, b = torch.tensor([[3.0, 0.0]]).expand(5, 2), torch.tensor([[0.0, 3.0]]).expand(5, 2)
    expected = torch.stack([3 * (WEIGHTS * math.pi / 2).cos(), 3 * (WEIGHTS * math.pi / 2).sin()], dim=1)
    torch.testing.assert_close(between(a, b, WEIGHTS), expected)
    turn = torch.linalg.qr(vectors(2, 2).double()).Q.float()  # and in every direction the same
    torch.testing.assert_close(between(a @ turn, b @ turn, WEIGHTS), expected @ turn)
    torch.testing.assert_close(between(b, a, 1 - WEIGHTS), expected)
    assert between(a, 2 * a, WEIGHTS).allclose((1 + WEIGHTS)[:, None] * a)  # of one direction: a line


def test_mixtures_end_in_the_classes(prior):
    options = prior.options_type(guidance_scale=2.0)
    plain = prior.sample([1, 4], options, [0, 1]).tokens
    assert prior.sample([Mixture(1, 3, 0.0), Mixture(2, 4, 1.0)], options, [0, 1]).tokens.equal(plain)
    assert prior.sample([Mixture(1, 1, 0.3), Mixture(4, 4, 0.9)], options, [0, 1]).tokens.equal(plain)
    assert prior.sample(torch.tensor([1, 4]), options, [0, 1]).tokens.equal(plain)
    middle = prior.sample([Mixture(1, 4, 0.5), Mixture(1, 4, 0.5)], options, [0, 1]).tokens
    assert not middle[0].equal(plain[0]) and not middle[1].equal(plain[1])


def test_a_mixture_is_the_same_in_any_batch(prior):
    options = prior.options_type(guidance_scale=2.0)
    labels = [Mixture(1, 4, weight) for weight in WEIGHTS.tolist()] + [2, Mixture(0, 3, 0.5)]
    seeds = [7] * 5 + [8, 9]
    together = prior.sample(labels, options, seeds).tokens
    alone = [prior.sample([label], options, [seed]).tokens for label, seed in zip(labels, seeds, strict=True)]
    assert torch.cat(alone).equal(together)
    assert prior.sample(labels[::-1], options, seeds[::-1]).tokens.equal(together.flip(0))


def test_the_logits_move_steadily_from_one_class_to_the_other(prior):
    """Small steps of the weight are small steps of the features, and they add up to the whole way."""
    weights = torch.linspace(0, 1, 65)
    table = prior.trunk.classes.detach()
    labels = between(table[[1]].expand(65, -1), table[[4]].expand(65, -1), weights)
    tokens = torch.zeros(65, 16, 32)
    with torch.no_grad():
        features = prior.trunk(tokens, labels)
        ends = prior.trunk(tokens[:2], torch.tensor([1, 4]))
    assert features[[0, -1]].equal(ends)
    steps = (features[1:] - features[:-1]).flatten(1).norm(dim=1)
    assert steps.max() < 0.2 * (ends[1] - ends[0]).norm()  # of 64 steps


def test_bad_mixtures_are_refused_in_one_line(prior):
    for label, message in (
        (Mixture(1, 5, 0.5), "class 5; give a class from 0 to 4"),
        (Mixture(-1, 1, 0.5), "class -1"),
        (Mixture(1, 2, 1.5), "weight 1.5 of a mixture of classes; give a share from 0 to 1"),
        (Mixture(1, 2, float("nan")), "weight nan"),
    ):
        with pytest.raises(UserError, match=message):
            prior.sample([label], prior.options_type(), [0])
