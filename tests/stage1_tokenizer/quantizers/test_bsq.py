"""BSQ against brute force over all codes on the sphere, and its bound."""

import pytest
import torch
from torch.nn.functional import normalize

from stage1_tokenizer.quantizers.bsq import BSQ


def latents(c, n=40):
    return torch.randn(n, c, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("inverse_temperature", [1.0, 10.0])
def test_codes_and_loss_are_those_of_all_codes_in_value_and_gradient(inverse_temperature):
    bits = 6
    quantizer = BSQ(bits, inverse_temperature=inverse_temperature).double()
    quantizer.anneal(1.0)
    z = latents(bits)
    out = quantizer(z)
    codes = quantizer.dequantize(torch.arange(2**bits)[:, None])
    torch.testing.assert_close(codes.norm(dim=1), torch.ones(2**bits, dtype=torch.float64))
    products = normalize(z, dim=1) @ codes.T
    assert torch.equal(out.indices[:, 0], products.argmax(1))
    p = (2 * inverse_temperature * products).softmax(1)
    mean = p.mean(0)
    loss = 0.1 / inverse_temperature * (-(p * p.log()).sum(1).mean() + (mean * mean.log()).sum())
    torch.testing.assert_close(out.losses["entropy"], loss)
    g = torch.randn(z.shape, dtype=torch.float64)
    mine = torch.autograd.grad((out.codes * g).sum() + out.losses["entropy"], z)
    theirs = torch.autograd.grad((normalize(z, dim=1) * g).sum() + loss, z)
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("bits", [2, 9, 18])
def test_the_error_is_bounded(bits):
    z = torch.cat([latents(bits, 500).detach(), torch.eye(bits, dtype=torch.float64) + 1e-3])
    error = (normalize(z, dim=1) - BSQ(bits).double()(z).codes).square().sum(1)
    assert error.max() <= 2 - 2 / bits**0.5 + 1e-9


@pytest.mark.parametrize(
    ("bits", "group_bits", "sizes"), [(18, None, (2**18,)), (36, None, (2**18,) * 2), (36, 9, (512,) * 4), (36, 1, (2,) * 36)]
)
def test_eighteen_and_thirty_six_bits_make_a_step(bits, group_bits, sizes):
    quantizer = BSQ(bits, group_bits)
    z = latents(bits, 64).float().detach().requires_grad_()
    out = quantizer(z)
    (out.codes.sum() + out.losses["entropy"]).backward()
    assert quantizer.sizes == sizes
    assert out.indices.shape == (64, len(sizes))
    assert torch.equal(out.codes > 0, z > 0)
    assert torch.equal(quantizer.dequantize(out.indices), out.codes)
    assert z.grad is not None
    assert z.grad.isfinite().all()
