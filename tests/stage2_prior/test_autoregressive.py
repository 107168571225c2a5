"""Random orders on the way to the raster order (RAR): what sees what, who is told what, when which order is drawn."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from pipeline.core.errors import UserError
from stage2_prior.autoregressive import StepwiseLogits
from stage2_prior.samplers import sample_autoregressive
from stage2_prior.sampling import UNKNOWN, ARSampling
from stage2_prior.transformer import take

RAR = {"random_until": 0.5, "raster_from": 0.75}


def draw_tokens(b, t=16, k=11):
    return torch.randint(k, (b, t, 1), generator=torch.Generator().manual_seed(b))


def orders_of(prior, progress, b=64):
    return prior.draw_noise(b, torch.Generator().manual_seed(0), progress)["order"]


def test_orders_are_random_at_first_then_fewer_and_fewer_then_none(make_prior):
    prior = make_prior("ar", **RAR)
    raster = torch.arange(16)
    for progress, least, most in ((0.0, 64, 64), (0.49, 64, 64), (0.625, 20, 44), (0.75, 0, 0), (1.0, 0, 0)):
        orders = orders_of(prior, progress)
        assert orders.sort(dim=1).values.equal(raster.expand(64, -1))
        assert least <= (orders != raster).any(1).sum() <= most
    assert [prior.random_share(progress) for progress in (0, 0.5, 0.55, 0.7, 0.75, 1)] == pytest.approx([1, 1, 0.8, 0.2, 0, 0])
    at_once = make_prior("ar", random_until=0.5, raster_from=0.5)
    assert (at_once.random_share(0.49), at_once.random_share(0.5)) == (1.0, 0.0)


def test_raster_alone_draws_no_order_and_tells_no_targets(make_prior):
    prior = make_prior("ar")
    assert "order" not in prior.draw_noise(4, torch.Generator().manual_seed(0), 0.0) and prior.trunk.targets is None
    with pytest.raises(UserError, match="random_until <= raster_from"):
        make_prior("ar", random_until=0.5)


def test_a_token_is_predicted_from_those_before_it_in_the_order_and_from_no_other(make_prior):
    prior = make_prior("ar", **RAR)
    order = orders_of(prior, 0.0, 3)
    x = torch.randn(3, 15, 32, requires_grad=True)
    for i in range(16):
        features = prior.trunk(x, torch.arange(3), order=order)
        (gradient,) = torch.autograd.grad((features[:, i] * torch.linspace(-1, 1, 32)).sum(), x)
        size = gradient.abs().sum(2)
        assert (size[:, :i] > 0).all() and (size[:, i:] == 0).all()


def test_the_loss_is_the_cross_entropy_of_the_tokens_in_their_order(make_prior):
    prior = make_prior("ar", **RAR, class_dropout=0.0)
    tokens, labels = draw_tokens(3), torch.arange(3)
    noise = prior.draw_noise(3, torch.Generator().manual_seed(1), 0.0)
    expected = torch.zeros(())
    for row, order in enumerate(noise["order"]):
        ordered = tokens[row, order]
        features = prior.trunk(prior.codes.embed(ordered[None, :-1]), labels[row : row + 1], order=order[None])
        logits = prior.codes.logits(features)(0, torch.arange(16), torch.empty(16, 0, dtype=torch.long))
        expected = expected + F.cross_entropy(logits, ordered[:, 0], reduction="sum")
    torch.testing.assert_close(prior(tokens, labels, noise), expected)
    other = prior.draw_noise(3, torch.Generator().manual_seed(2), 0.0)
    assert not torch.isclose(prior(tokens, labels, other), expected)


def test_places_are_told_which_position_comes_next(make_prior):
    """The same tokens known, another position asked for: another answer, at that place and at no earlier one."""
    prior = make_prior("ar", **RAR)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))[None]
    swapped = order.clone()
    swapped[0, [7, 8]] = order[0, [8, 7]]
    x = torch.randn(1, 15, 32)
    first, second = (prior.trunk(x, torch.tensor([1]), order=each)[0] for each in (order, swapped))
    assert first[:7].equal(second[:7]) and not torch.isclose(first[7], second[7]).any()


def test_the_raster_order_is_the_default(make_prior):
    prior = make_prior("ar", **RAR)
    tokens, labels, raster = draw_tokens(3), torch.arange(3), torch.arange(16).expand(3, -1)
    torch.testing.assert_close(prior._features(tokens, labels), prior._features(tokens, labels, order=raster))
    noise = prior.draw_noise(3, torch.Generator().manual_seed(0), 1.0) | {"class_drop": torch.ones(3)}
    bits = prior.validation_bits(tokens, labels, noise)
    torch.testing.assert_close(bits.sum(), prior(tokens, labels, noise) / math.log(2))


def test_cached_sampling_equals_uncached_and_targets_are_told_there_too(make_prior):
    prior = make_prior("ar", **RAR)
    labels, given = torch.tensor([0, 3, 4]), torch.full((3, 16, 1), UNKNOWN)
    given[1, 2:7] = 3

    def uncached(tokens, start, m, branches):
        features = prior._features(tokens.repeat(len(branches), 1, 1), prior._branch_labels(labels, branches))
        at = (torch.tensor(start)[:, None] + torch.arange(m)).clamp(max=15).repeat(len(branches), 1)
        return prior.codes.logits(take(features, at))

    for options in (ARSampling(guidance_scale=2.0), ARSampling(guidance_scale=3.0, guidance_interval=(0.2, 0.6))):
        plain = sample_autoregressive(uncached, given, options, [1, 2, 3])
        assert prior.sample(labels, options, [1, 2, 3], given).tokens.equal(plain.tokens)
    with torch.no_grad():
        tokens, cached = draw_tokens(3), StepwiseLogits(prior, labels).causal
        full = prior.codes.logits(prior._features(tokens, labels)[:, :1])
        nothing = torch.empty(3, 0, dtype=torch.long)
        torch.testing.assert_close(
            cached(tokens, [0] * 3, 1, (True,))(0, torch.arange(3), nothing), full(0, torch.arange(3), nothing)
        )


def test_loss_and_gradient_do_not_depend_on_the_split_of_the_batch(make_prior):
    prior = make_prior("ar", **RAR, dropout=0.2).train()
    tokens, labels = draw_tokens(8), torch.arange(8) % 5
    noise = prior.draw_noise(8, torch.Generator().manual_seed(3), 0.6)

    def gradients(size):
        prior.zero_grad()
        for start in range(0, 8, size):
            rows = slice(start, start + size)
            prior(tokens[rows], labels[rows], {key: value[rows] for key, value in noise.items()}).backward()
        return [parameter.grad.clone() for parameter in prior.parameters()]

    whole = gradients(8)
    assert all(gradient.abs().sum() > 0 for gradient in whole)
    torch.testing.assert_close(gradients(2), whole, rtol=1e-4, atol=1e-5)
