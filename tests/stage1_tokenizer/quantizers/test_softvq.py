"""SoftVQ against its formula written out densely, and the way from its soft to its hard path."""

import torch
from torch.nn.functional import normalize

from stage1_tokenizer.quantizers.softvq import SoftVQ


def make(n=30, k=12, c=4, **options):
    torch.manual_seed(0)
    return SoftVQ(c, k, **options).double(), torch.randn(n, c, dtype=torch.float64, requires_grad=True)


def test_value_loss_and_gradients_are_the_published_ones():
    quantizer, z = make()
    out = quantizer(z)
    units = normalize(quantizer.codebook, dim=1)
    cosines = normalize(z, dim=1) @ units.detach().T
    q = (cosines / 0.07).softmax(1) @ units
    p = (cosines / 0.01).softmax(1)
    mean = p.mean(0)
    loss = 0.01 * (-(p * (p + 1e-30).log()).sum(1).mean() + (mean * (mean + 1e-30).log()).sum())
    torch.testing.assert_close(out.codes, q)
    torch.testing.assert_close(out.losses["entropy"], loss)
    g = torch.randn(q.shape, dtype=torch.float64)
    mine = torch.autograd.grad((out.codes * g).sum() + out.losses["entropy"], [z, quantizer.codebook])
    theirs = torch.autograd.grad((q * g).sum() + loss, [z, quantizer.codebook])
    torch.testing.assert_close(mine, theirs)


def test_soft_codes_become_the_hard_ones_as_the_temperature_falls():
    quantizer, z = make(temperature_end=1e-4)
    quantizer.anneal(1.0)
    soft = quantizer(z)
    hard = quantizer.eval()(z)
    assert torch.equal(soft.indices, hard.indices)
    torch.testing.assert_close(soft.codes, hard.codes)


def test_soft_codes_lie_in_the_convex_hull():
    quantizer, z = make(c=1, k=2)
    quantizer.codebook.data.copy_(torch.tensor([[-2.0], [3.0]]))
    assert (quantizer(z).codes.abs() <= 1).all()
