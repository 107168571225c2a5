"""LGQ per channel is as many scalar LGQs, and its index a bijection."""

import math

import pytest
import torch

from stage1_tokenizer.quantizers.lgq import LGQ
from stage1_tokenizer.quantizers.lgq_channel import LGQChannel

LEVELS = (4, 3, 5)


def make():
    quantizer = LGQChannel(LEVELS).double()
    z = torch.randn(40, len(LEVELS), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    quantizer.initialize(z)
    return quantizer, z


def test_it_is_as_many_scalar_lgqs():
    quantizer, z = make()
    cotangent = torch.randn(z.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z.requires_grad_()
    out = quantizer(z)
    total = (out.codes * cotangent).sum() + torch.stack(list(out.losses.values())).sum()
    (gradient,) = torch.autograd.grad(total, z)
    for j, level in enumerate(LEVELS):
        scalar = LGQ(1, level).double()
        x = z[:, j : j + 1].detach().requires_grad_()
        scalar.initialize(x)
        alone = scalar(x)
        assert torch.equal(out.codes[:, j : j + 1], alone.codes)
        loss = torch.stack(list(alone.losses.values())).sum() / len(LEVELS)
        (expected,) = torch.autograd.grad((alone.codes * cotangent[:, j : j + 1]).sum() + loss, x)
        torch.testing.assert_close(gradient[:, j : j + 1], expected, rtol=1e-12, atol=1e-12)


def test_every_index_has_its_own_code_and_every_code_is_its_own_nearest():
    quantizer, _ = make()
    everything = torch.arange(math.prod(LEVELS))[:, None]
    codes = quantizer.eval().dequantize(everything)
    assert len(codes.unique(dim=0)) == len(everything) == quantizer.sizes[0]
    assert torch.equal(quantizer(codes).indices, everything)
    assert everything[1, 0] == 1
    assert torch.equal(codes[0, 1:], codes[1, 1:])  # the first channel counts fastest, as FSQ's does


def test_on_gaussian_data_it_errs_less_than_even_levels():
    quantizer, _ = make()
    z = torch.randn(4000, len(LEVELS), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    quantizer.initialize(z)
    error = (quantizer.eval()(z).codes - z).square().mean(0)
    for j, level in enumerate(LEVELS):
        even = torch.linspace(z[:, j].min(), z[:, j].max(), level, dtype=torch.float64)
        assert error[j] < (z[:, j : j + 1] - even).abs().amin(1).square().mean()


def test_levels_come_from_a_budget_or_are_refused():
    assert LGQChannel(codebook_size=1024).sizes == (1000,)
    with pytest.raises(ValueError, match="LGQChannel: levels"):
        LGQChannel([1, 4])
