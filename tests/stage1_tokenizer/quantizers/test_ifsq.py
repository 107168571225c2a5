"""iFSQ: its formula, its bijection, and latents of a unit normal that fill its levels."""

import math

import pytest
import torch

from stage1_tokenizer.quantizers.fsq import FSQ
from stage1_tokenizer.quantizers.ifsq import IFSQ


def test_value_and_gradient_are_those_of_the_formula():
    z = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    half = torch.tensor([8.0, 3.0, 1.0], dtype=torch.float64)
    out = IFSQ([17, 7, 3]).double()(z)
    bounded = 2 * torch.sigmoid(1.6 * z) - 1
    torch.testing.assert_close(out.codes, (bounded * half).round() / half)
    mine = torch.autograd.grad(out.codes.sum(), z)
    torch.testing.assert_close(mine, torch.autograd.grad(bounded.sum(), z))


def test_every_index_has_its_own_code_and_every_code_can_be_reached():
    quantizer = IFSQ([5, 3, 7])
    everything = torch.arange(math.prod([5, 3, 7]))[:, None]
    codes = quantizer.dequantize(everything)
    assert len(codes.unique(dim=0)) == len(everything) == quantizer.sizes[0]
    before_bound = torch.logit(((codes + 1) / 2).clamp(1e-6, 1 - 1e-6)) / 1.6
    assert torch.equal(quantizer(before_bound).indices, everything)


def test_a_unit_normal_fills_the_levels_evenly():
    z = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0))
    share = IFSQ([17])(z).indices[:, 0].bincount(minlength=17) / len(z) * 16
    assert (share[1:-1] - 1).abs().max() < 0.12
    assert (share[[0, -1]] - 0.255).abs().max() < 0.03  # 16 P(z > log(31) / 1.6)
    tanh = FSQ([17])(z).indices[:, 0].bincount(minlength=17) / len(z) * 16
    assert (tanh[1:-1] - 1).abs().max() > 0.3


@pytest.mark.parametrize("size", [1e6, -1e6])
def test_no_input_leaves_the_range(size):
    out = IFSQ([5, 3])(torch.full((1, 2), size))
    assert out.indices.item() == (14 if size > 0 else 0)


def test_even_levels_are_refused():
    with pytest.raises(ValueError, match="odd"):
        IFSQ([8, 5])
