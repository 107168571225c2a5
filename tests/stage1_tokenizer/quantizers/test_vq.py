"""VQ against equation 3 and vector-quantize-pytorch."""

import torch
from vector_quantize_pytorch import VectorQuantize

from stage1_tokenizer.quantizers.vq import VQ


def make(n=40, k=7, c=3):
    draw = torch.Generator().manual_seed(0)
    quantizer = VQ(c, k).double()
    quantizer.codebook.data.copy_(torch.randn(k, c, generator=draw))
    return quantizer, torch.randn(n, c, generator=draw, dtype=torch.float64, requires_grad=True)


def test_losses_and_gradients_are_those_of_the_paper():
    quantizer, z = make()
    out = quantizer(z)
    distances = (z[:, None] - quantizer.codebook[None]).square().sum(-1)
    total = torch.stack(list(out.losses.values())).sum()
    torch.testing.assert_close(total, 1.25 * distances.min(1).values.mean() / 3)
    to_z, to_codes = torch.autograd.grad(total, [z, quantizer.codebook], retain_graph=True)
    chosen = distances.argmin(1)
    difference = z - quantizer.codebook[chosen]
    torch.testing.assert_close(to_z, 0.25 * 2 / z.numel() * difference)
    expected = torch.zeros_like(quantizer.codebook).index_add(0, chosen, -2 / z.numel() * difference)
    torch.testing.assert_close(to_codes, expected)
    (identity,) = torch.autograd.grad(out.codes.sum(), z)
    assert torch.equal(identity, torch.ones_like(z))


def test_only_chosen_codes_get_gradient():
    quantizer, z = make(n=3)
    out = quantizer(z)
    torch.stack(list(out.losses.values())).sum().backward()
    assert quantizer.codebook.grad is not None
    moved = (quantizer.codebook.grad != 0).any(1).nonzero()[:, 0]
    assert torch.equal(moved, out.indices.unique())


def test_agrees_with_an_independent_implementation():
    """Whose loss takes the codes' gradient and the vectors' with the same weight: 1.25 of it is ours in value."""
    quantizer, z = make()
    options = {"learnable_codebook": True, "ema_update": False, "rotation_trick": False, "commitment_weight": 1.0}
    other = VectorQuantize(3, 7, **options).double()
    other._codebook.embed.data.copy_(quantizer.codebook[None])
    theirs = z.detach().clone().requires_grad_()
    codes, indices, loss = other(theirs[None])
    out = quantizer(z)
    assert torch.equal(out.indices[:, 0], indices[0])
    torch.testing.assert_close(out.codes, codes[0])
    torch.testing.assert_close(out.losses["codebook"], loss.sum())
    mine = torch.autograd.grad(out.losses["codebook"], quantizer.codebook)[0]
    torch.testing.assert_close(mine, torch.autograd.grad(loss.sum(), other._codebook.embed)[0][0])
