"""GM-VQ: responsibilities of a mixture, the aggregated KL, the noise's size, a hard eval."""

import math

import torch
from torch import distributions

from stage1_tokenizer.quantizers.gmvq import GMVQ

N, K, C = 50, 10, 4


def make(**options):
    torch.manual_seed(0)
    quantizer = GMVQ(C, K, **options).double()
    return quantizer, torch.randn(N, C, dtype=torch.float64).requires_grad_()


def responsibilities(quantizer, z):
    codes, deviation = quantizer.layers[0].codes, (quantizer.layers[0].log_variance / 2).exp()
    each = distributions.Independent(distributions.Normal(codes, deviation.expand(K, C)), 1)
    return each.log_prob(z[:, None]).softmax(1)


def test_the_kl_is_that_of_the_mean_responsibilities_to_the_uniform_distribution():
    quantizer, z = make(kl_weight=1.0, variance_start=0.6)
    w = responsibilities(quantizer, z)
    mean, uniform = distributions.Categorical(w.mean(0)), distributions.Categorical(torch.ones(K, dtype=torch.float64))
    kl = distributions.kl_divergence(mean, uniform)
    loss = quantizer(z).losses["kl"]
    torch.testing.assert_close(loss, kl)
    assert 0 <= loss <= math.log(K)
    leaves = [z, quantizer.layers[0].codes, quantizer.layers[0].log_variance]
    torch.testing.assert_close(torch.autograd.grad(loss, leaves), torch.autograd.grad(kl, leaves))


def test_the_noise_is_as_large_as_the_error_and_carries_no_gradient():
    quantizer, _ = make(temperature_start=0.01)
    z = torch.randn(1, C, dtype=torch.float64).expand(4000, C).clone().requires_grad_()
    out = quantizer(z)
    quantizer.layers[0].noise.drawn.zero_()  # the same sample again
    sample = quantizer.layers[0].sample(z, quantizer.temperature)
    noise = (out.codes - sample.codes).detach()
    size = (z - sample.codes).detach().square().mean(1, keepdim=True).sqrt()
    unit = noise / size
    assert abs(unit.mean()) < 0.05
    assert abs(unit.var() - 1) < 0.05
    cotangent = torch.ones_like(z)
    mine, theirs = (torch.autograd.grad(codes, z, cotangent)[0] for codes in (out.codes, sample.codes))
    torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(out.losses["commitment"], 0.25 * size.square().mean())


def test_eval_is_the_likeliest_mean_without_noise():
    quantizer, z = make()
    out = quantizer.eval()(z)
    assert torch.equal(out.indices[:, 0], responsibilities(quantizer, z).argmax(1))
    assert torch.equal(out.codes, quantizer.layers[0].codes[out.indices[:, 0]])
