"""Residual FSQ against vector-quantize-pytorch, its residuals and its gradient."""

import pytest
import torch
import vector_quantize_pytorch

from stage1_tokenizer.quantizers.residual_fsq import ResidualFSQ

CASES = [([4, 4, 2], 2), ([8, 5, 5, 3], 3), ([3, 3], 1)]


def latents(c, n=200):
    return torch.randn(n, c, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(("levels", "stages"), CASES)
def test_agrees_with_an_independent_implementation(levels, stages):
    z = latents(len(levels))
    other = vector_quantize_pytorch.ResidualFSQ(levels=levels, num_quantizers=stages).double()
    codes, indices = other(z[None])
    out = ResidualFSQ(levels, stages).double()(z)
    assert torch.equal(out.indices, indices[0].long())
    torch.testing.assert_close(out.codes, codes[0])


@pytest.mark.parametrize(("levels", "stages"), CASES)
def test_the_gradient_is_that_of_the_soft_clamp(levels, stages):
    z = latents(len(levels)).requires_grad_()
    limit = 1 + 1 / (torch.tensor(levels, dtype=torch.float64) - 1)
    (gradient,) = torch.autograd.grad(ResidualFSQ(levels, stages).double()(z).codes.sum(), z)
    torch.testing.assert_close(gradient, 1 - (z.detach() / limit).tanh().square())


def test_every_stage_brings_the_code_nearer_where_nothing_is_clipped():
    z = 0.5 * latents(3)
    limit = 1 + 1 / 4
    errors = []
    for stages in (1, 2, 3, 4):
        codes = ResidualFSQ([5, 5, 5], stages).double()(z).codes
        errors.append(((z / limit).tanh() * limit - codes).square().mean().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.05 * errors[0]


def test_every_pair_of_indices_has_a_code_of_its_own():
    quantizer = ResidualFSQ([4, 2], 2)
    pairs = torch.cartesian_prod(torch.arange(8), torch.arange(8))
    assert quantizer.sizes == (8, 8)
    assert len(quantizer.dequantize(pairs).unique(dim=0)) == 64


def test_too_few_levels_are_refused():
    with pytest.raises(ValueError, match="levels"):
        ResidualFSQ([4, 1], 2)
