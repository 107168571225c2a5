"""VAEVQ: its Jacobians, its three losses against independent writings, and its noise."""

import copy
import math

import numpy as np
import scipy.linalg
import torch
from torch import distributions
from torch.nn import functional as F

from stage1_tokenizer.quantizers.vaevq import VAEVQ, distance_to_standard_normal
from stage1_tokenizer.quantizers.vq import VQ

N, K, C = 30, 12, 3


def make(**options):
    draw = torch.Generator().manual_seed(0)
    quantizer = VAEVQ(C, K, **options).double()
    quantizer.basis.data.copy_(torch.randn(K, C, generator=draw))
    quantizer.weight.data.add_(0.3 * torch.randn(C, C, generator=draw))
    return quantizer, torch.randn(N, 2 * C, generator=draw, dtype=torch.float64).requires_grad_()


def test_gradients_of_the_code():
    quantizer, z = make()
    cotangent = torch.randn(N, C, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    out = quantizer(z)
    codes = quantizer.codebook()[out.indices[:, 0]]
    assert torch.equal(out.codes, codes)
    to_z, to_basis = torch.autograd.grad(out.codes, [z, quantizer.basis], cotangent)
    mean, log_variance = z.detach().chunk(2, 1)
    torch.testing.assert_close(to_z[:, :C], cotangent)
    sigma = (log_variance / 2).exp()
    to_sigma = to_z[:, C:] / (sigma / 2)  # the input is log sigma^2
    torch.testing.assert_close(to_sigma, cotangent * (codes.detach() - mean) / sigma)
    expected = torch.zeros(K, C, dtype=torch.float64).index_add_(0, out.indices[:, 0], cotangent) @ quantizer.weight
    torch.testing.assert_close(to_basis, expected)


def test_losses_against_other_writings():
    quantizer, z = make(rcs_weight=1.0, dcr_weight=1.0, kl_weight=1.0)
    out = quantizer(z)
    mean, log_variance = z.chunk(2, 1)
    sigma = (log_variance / 2).exp()
    normal = distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    kl = distributions.kl_divergence(distributions.Normal(mean, sigma), normal).mean()
    torch.testing.assert_close(out.losses["kl"], kl)
    torch.testing.assert_close(out.losses["rcs"], ((out.codes - mean) / sigma).square().mean() / 2)
    (to_z,) = torch.autograd.grad(out.losses["rcs"], z)
    assert (to_z[:, C:] == 0).all()
    book = quantizer.codebook().detach().numpy()
    m, s = book.mean(0), np.cov(book.T, bias=True)
    dcr = m @ m + np.trace(s) + C - 2 * np.trace(scipy.linalg.sqrtm(s).real)  # pyright: ignore[reportAttributeAccessIssue]
    np.testing.assert_allclose(out.losses["dcr"].detach(), dcr)


def test_the_distance_is_zero_for_white_points_only():
    white = 3**0.5 * torch.cat([torch.eye(3), -torch.eye(3)]).double()
    assert distance_to_standard_normal(white) < 1e-12
    for points in (white + 0.1, 1.1 * white, white * torch.tensor([1.0, 1.0, 0.5])):
        assert distance_to_standard_normal(points) > 0.01
    flat = (white * torch.tensor([1.0, 1.0, 0.0])).requires_grad_()
    assert torch.autograd.grad(distance_to_standard_normal(flat), flat)[0].isfinite().all()


def test_training_quantizes_and_passes_on_a_sample_and_eval_the_mean():
    quantizer, z = make()
    mean, log_variance = z.chunk(2, 1)
    plain = VQ(C, K).double()
    plain.codebook.data.copy_(quantizer.codebook())
    noise = copy.deepcopy(quantizer.noise).normal(mean)
    out = quantizer(z)
    (sample,) = out.further
    torch.testing.assert_close(sample, mean + (log_variance / 2).exp() * noise)
    assert torch.equal(out.indices, plain(sample).indices)
    assert not torch.equal(out.indices, plain(mean).indices)
    cotangent = torch.randn(N, C, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    to_z, *to_book = torch.autograd.grad(sample, [z, *quantizer.parameters()], cotangent, allow_unused=True)
    torch.testing.assert_close(to_z, torch.cat([cotangent, cotangent * noise * (log_variance / 2).exp() / 2], 1).detach())
    assert to_book == [None, None]
    assert not torch.equal(quantizer(z).further[0], sample)  # another draw
    other = torch.cat([mean, torch.full_like(mean, 5.0)], 1)
    for latents in (z, other):
        out = quantizer.eval()(latents)
        assert out.further == ()
        assert torch.equal(out.indices, plain(mean).indices)


def test_without_variance_the_coherence_loss_is_vqs():
    quantizer, z = make()
    plain = VQ(C, K).double()
    plain.codebook.data.copy_(quantizer.codebook())
    sure = quantizer(torch.cat([z[:, :C], torch.full((N, C), -20.0)], 1))
    codes = plain(z[:, :C]).codes
    assert torch.equal(sure.codes, codes)
    torch.testing.assert_close(2 * sure.losses["rcs"] * math.exp(-20), F.mse_loss(codes, z[:, :C]))
