"""VAEVQ: its Jacobians, its three losses against independent writings, and no noise."""

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


def test_the_variance_chooses_no_code_and_eval_draws_none():
    quantizer, z = make()
    other = torch.cat([z[:, :C], torch.randn(N, C, dtype=torch.float64) * 30], 1)
    plain = VQ(C, K).double()
    plain.codebook.data.copy_(quantizer.codebook())
    for training in (True, False):
        first, second = quantizer.train(training)(z), quantizer(other)
        assert torch.equal(first.indices, plain(z[:, :C]).indices)
        assert torch.equal(first.indices, second.indices)
        assert torch.equal(first.codes, second.codes)
    loss = quantizer.train()(torch.cat([z[:, :C], torch.zeros(N, C)], 1)).losses["rcs"]
    torch.testing.assert_close(2 * loss, F.mse_loss(plain(z[:, :C]).codes, z[:, :C]))  # with variance 1: VQ's loss
