"""SQ-VAE: the posterior, the free energy in closed form, the Gumbel sample, the hard limit."""

import torch
from scipy import stats

from stage1_tokenizer.quantizers.soft_assignment import soft_assign
from stage1_tokenizer.quantizers.sqvae import SQVAE

N, K, C = 24, 10, 4


def make(**options):
    draw = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    quantizer = SQVAE(C, K, weight=1.0, **options).double()
    quantizer.layers[0].codes.data.copy_(torch.randn(K, C, generator=draw))
    return quantizer, torch.randn(N, C, generator=draw, dtype=torch.float64).requires_grad_()


def test_posterior_and_free_energy_are_those_of_lgq_at_twice_the_variance():
    quantizer, z = make(variance_start=0.7)
    sample = quantizer.layers[0].sample(z, quantizer.temperature)
    soft = soft_assign(z, quantizer.layers[0].codes, 1.4)
    torch.testing.assert_close(sample.posterior @ quantizer.layers[0].codes, soft.codes)
    distances = (z[:, None] - quantizer.layers[0].codes).square().sum(2)
    expected = (sample.posterior * (distances / 1.4 + sample.posterior.log())).sum(1)
    torch.testing.assert_close(expected, -soft.log_partition)
    torch.testing.assert_close(quantizer(z).losses["entropy"], (sample.posterior * sample.posterior.log()).sum(1).mean())


def test_the_losses_and_every_gradient_against_the_public_formula():
    quantizer, z = make(variance_start=0.7)
    layer = quantizer.layers[0]
    out = quantizer(z)
    layer.noise.drawn.zero_()  # the same noise again
    logits = -torch.cdist(z, layer.codes).square() / (2 * layer.log_variance.exp())
    relaxed = torch.softmax((logits + layer.noise.gumbel(logits)) / 1.0, 1)
    q = relaxed @ layer.codes
    p = logits.softmax(1)
    loss = (p * p.log()).sum() / N + ((z - q) ** 2 / (2 * layer.log_variance.exp())).sum() / N
    leaves = [z, layer.codes, layer.log_variance]
    mine = torch.autograd.grad(out.codes.sum() + out.losses["distance"] + out.losses["entropy"], leaves)
    torch.testing.assert_close(mine, torch.autograd.grad(q.sum() + loss, leaves))


def test_samples_follow_the_posterior():
    quantizer, z = make(temperature_start=1e-3, temperature_end=1e-3)
    rows = z[:1].detach().expand(4000, C)
    sample = quantizer.layers[0].sample(rows, quantizer.temperature)
    drawn = torch.cdist(sample.codes, quantizer.layers[0].codes).argmin(1)
    counts = torch.bincount(drawn, minlength=K)
    assert stats.chisquare(counts, 4000 * sample.posterior[0].detach()).pvalue > 0.01


def test_a_small_variance_is_hard_and_eval_draws_nothing():
    quantizer, z = make(variance_start=1e-4)
    soft, hard = quantizer(z), quantizer.eval()(z)
    assert torch.equal(soft.indices, hard.indices)
    torch.testing.assert_close(soft.codes, hard.codes)
    assert torch.equal(quantizer(z).codes, hard.codes)
    quantizer.anneal(0.5)
    torch.testing.assert_close(quantizer.temperature.item(), 0.21**0.5)
