"""Gumbel-softmax VQ: its gradient by torch, its frequencies, its divergence, and silence in eval mode."""

import math

import pytest
import torch
from torch.nn.functional import one_hot

from stage1_tokenizer.quantizers import relaxed_samples
from stage1_tokenizer.quantizers.gumbel import Gumbel


def make(n=30, k=6, c=3, **options):
    torch.manual_seed(0)
    quantizer = Gumbel(c, k, **options).double()
    quantizer.to_logits.reset_parameters()
    return quantizer, torch.randn(n, c, dtype=torch.float64, requires_grad=True)


def test_gradients_are_those_of_the_published_form_under_the_same_noise():
    quantizer, z = make()
    quantizer.anneal(0.6)
    noise = quantizer.noise.gumbel(torch.empty(30, 6, dtype=torch.float64))
    quantizer.noise.drawn.zero_()
    out = quantizer(z)
    logits = quantizer.to_logits(z)
    soft = ((logits + noise) / quantizer.temperature).softmax(1)
    hard = one_hot((logits + noise).argmax(1), 6).to(soft)
    q = (hard - soft.detach() + soft) @ quantizer.codebook
    p = logits.softmax(1)
    loss = 5e-4 * (p * (p * 6 + 1e-10).log()).sum(1).mean()
    torch.testing.assert_close(out.codes, q)
    torch.testing.assert_close(out.losses["kl"], loss)
    g = torch.randn(q.shape, dtype=torch.float64)
    parameters = [z, quantizer.codebook, quantizer.to_logits.weight, quantizer.to_logits.bias]
    mine = torch.autograd.grad((out.codes * g).sum() + out.losses["kl"], parameters)
    theirs = torch.autograd.grad((q * g).sum() + loss, parameters)
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("at_once", [1, 20])
def test_samples_of_some_vectors_at_a_time_are_those_of_all_at_once(monkeypatch, at_once):
    results = []
    for size in (relaxed_samples.AT_ONCE, at_once):
        monkeypatch.setattr(relaxed_samples, "AT_ONCE", size)
        quantizer, z = make()
        out = quantizer(z)
        total = out.codes.square().sum() + out.losses["kl"]
        results.append((out.codes, *torch.autograd.grad(total, [z, *quantizer.parameters()])))
    torch.testing.assert_close(results[0], results[1])


def test_codes_are_drawn_with_the_probabilities_of_the_logits():
    quantizer, z = make(n=1)
    draws = 20000
    counts = quantizer(z.expand(draws, -1)).indices[:, 0].bincount(minlength=6)
    expected = draws * quantizer.to_logits(z).softmax(1)[0]
    chi_square = ((counts - expected).square() / expected).sum()
    assert chi_square < 20.5  # the 99.9th percentile for 5 degrees of freedom


def test_the_divergence_lies_between_zero_and_log_k():
    quantizer, z = make()
    quantizer.to_logits.weight.data.zero_()
    quantizer.to_logits.bias.data.zero_()
    torch.testing.assert_close(quantizer(z).losses["kl"], torch.tensor(0.0, dtype=torch.float64))
    quantizer.to_logits.bias.data[2] = 1e3
    torch.testing.assert_close(quantizer(z).losses["kl"].item(), 5e-4 * math.log(6))


def test_no_noise_in_eval_mode_and_a_start_that_means_nearest():
    quantizer, z = make()
    with torch.no_grad():
        assert torch.equal(quantizer.eval()(z).indices[:, 0], quantizer.to_logits(z).argmax(1))
        quantizer.initialize(z[:6])
        assert torch.equal(quantizer(z).indices[:, 0], torch.cdist(z, quantizer.codebook).argmin(1))


def test_the_temperature_falls_from_start_to_end():
    quantizer, _ = make()
    seen = []
    for progress in (0.0, 0.5, 1.0):
        quantizer.anneal(progress)
        seen.append(quantizer.temperature.item())
    torch.testing.assert_close(seen, [1.0, (1 + 1 / 16) / 2, 1 / 16])
