"""MSVQ against its recursion written out, and its bookkeeping of scales."""

import pytest
import torch
from torch.nn import functional as F

from stage1_tokenizer.quantizers import build_quantizer
from stage1_tokenizer.quantizers.multi_scale import MultiScale


def make(sides=(1, 2, 3, 5), base=None, **options):
    torch.manual_seed(0)
    base = base or {"name": "vq", "dim": 3, "codebook_size": 9}
    quantizer = build_quantizer("multi_scale", base=base, sides=sides, **options)
    assert isinstance(quantizer, MultiScale)
    for parameter in quantizer.base.parameters():
        parameter.data.normal_()
    return quantizer.double(), torch.randn(2, 5, 5, quantizer.dim, dtype=torch.float64, requires_grad=True)


def written_out(quantizer, z):
    """VAR's forward, as published: indices, f_hat, loss; with four scales the n-th has the n-th phi."""
    f = z.permute(0, 3, 1, 2)
    rest, f_hat, loss, indices = f.detach(), torch.zeros_like(f), torch.tensor(0.0), []
    codebook = quantizer.base.codebook
    for number, side in enumerate(quantizer.sides):
        small = F.interpolate(rest, size=(side, side), mode="area")
        distances = (small.permute(0, 2, 3, 1)[..., None, :] - codebook.detach()).square().sum(-1)
        index = distances.argmin(-1)
        h = codebook[index].permute(0, 3, 1, 2)
        h = F.interpolate(h, size=(5, 5), mode="bicubic") if side != 5 else h
        h = 0.5 * h + 0.5 * quantizer.phi[number](h)
        f_hat = f_hat + h
        rest = rest - h.detach()
        loss = loss + F.mse_loss(f_hat, f.detach()) + 0.25 * F.mse_loss(f_hat.detach(), f)
        indices.append(index.flatten(1))
        torch.testing.assert_close(rest + f_hat, f)
    return torch.cat(indices, 1), f_hat.permute(0, 2, 3, 1), loss / len(quantizer.sides)


def test_agrees_with_the_recursion_written_out_in_value_and_gradient():
    quantizer, z = make()
    out = quantizer(z)
    indices, f_hat, loss = written_out(quantizer, z)
    assert torch.equal(out.indices[..., 0], indices)
    torch.testing.assert_close(out.codes, f_hat)
    mine = torch.stack(list(out.losses.values())).sum()
    torch.testing.assert_close(mine, loss)
    wanted = [z, *quantizer.parameters()]
    for ours, theirs in zip(torch.autograd.grad(mine, wanted), torch.autograd.grad(loss, wanted), strict=True):
        torch.testing.assert_close(ours, theirs)
    (identity,) = torch.autograd.grad(out.codes.sum(), z)
    assert torch.equal(identity, torch.ones_like(z))


def test_the_published_scales_have_680_tokens():
    quantizer = build_quantizer("multi_scale", base={"name": "vq", "dim": 3, "codebook_size": 9})
    assert isinstance(quantizer, MultiScale)
    assert quantizer.scales((16, 16)) == tuple((side, side) for side in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
    assert sum(h * w for h, w in quantizer.scales((16, 16))) == 680
    assert quantizer.scales((1, 1)) == ((1, 1),)
    assert quantizer.scales((16, 8))[-2:] == ((13, 7), (16, 8))


def test_one_scale_with_no_smoothing_is_the_base():
    quantizer, z = make(sides=(1,))
    for phi in quantizer.phi:
        torch.nn.init.dirac_(phi.get_parameter("weight"))
        torch.nn.init.zeros_(phi.get_parameter("bias"))
    base = quantizer.base(z.flatten(0, 2))
    out = quantizer(z)
    assert torch.equal(out.indices.flatten(0, 1), base.indices)
    torch.testing.assert_close(out.codes.flatten(0, 2), base.codes)


@pytest.mark.parametrize(
    "base",
    [
        {"name": "fsq", "levels": [3, 4]},
        {"name": "lgq", "dim": 3, "codebook_size": 9},
        {"name": "vq_ema", "dim": 3, "codebook_size": 9},
    ],
    ids=lambda base: base["name"],
)
def test_any_base_searches(base):
    quantizer, z = make(base=base, base_weight=1.0)
    out = quantizer(z)
    assert torch.equal(out.codes, quantizer.dequantize(out.indices, (5, 5)))
    own = {name for name in out.losses if name.startswith("base ")}
    assert own == {f"base {name}" for name in quantizer.base(z.flatten(0, 2)).losses}
    torch.stack(list(out.losses.values())).sum().backward()
    quantizer.anneal(0.5)


@pytest.mark.parametrize("sides", [(), (0, 1), (3, 2), (2, 2)])
def test_a_mistake_in_the_sides_gets_a_line_that_helps(sides):
    with pytest.raises(ValueError, match="increasing"):
        make(sides=sides)
