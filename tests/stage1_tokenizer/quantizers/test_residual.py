"""RQ against vector-quantize-pytorch, RQ-VAE's loss and its prefix sums."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from vector_quantize_pytorch import ResidualVQ

from stage1_tokenizer.quantizers import build_quantizer
from stage1_tokenizer.quantizers.residual import Residual
from stage1_tokenizer.quantizers.vq import VQ


def codebook_of(layer) -> Any:
    return layer.codebook


def make(depth=3, shared=True, dtype=torch.float64, **base):
    torch.manual_seed(0)
    base = {"name": "vq", "dim": 4, "codebook_size": 6} | base
    quantizer = build_quantizer("residual", base=base, depth=depth, shared=shared)
    assert isinstance(quantizer, Residual)
    for layer in quantizer.layers:
        codebook_of(layer).data.normal_()
    return quantizer.to(dtype), torch.randn(50, 4, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("shared", [True, False])
def test_agrees_with_an_independent_implementation(shared):
    quantizer, z = make(shared=shared)
    options = {"learnable_codebook": True, "ema_update": False, "rotation_trick": False, "commitment_weight": 1.0}
    other = ResidualVQ(dim=4, num_quantizers=3, codebook_size=6, shared_codebook=shared, **options).double().eval()
    for number, embed in enumerate(value for name, value in other.named_parameters() if name.endswith("embed")):
        embed.data.copy_(codebook_of(quantizer.layers[number])[None])
    out = quantizer(z)
    codes, indices, _ = other(z[None])
    assert torch.equal(out.indices, indices[0])
    torch.testing.assert_close(out.codes, codes[0])


def test_loss_and_gradients_are_those_of_the_paper():
    """mean over depths of beta mean|z - sg zhat_d|^2 for z; ours is D times that in value (see the docstring)."""
    quantizer, z = make()
    out = quantizer(z)
    codebook = codebook_of(quantizer.layers[0])
    partial = codebook[out.indices].cumsum(1)
    losses = [(z - partial[:, depth].detach()).square().mean() for depth in range(3)]
    published = 0.25 * torch.stack(losses).mean()
    torch.testing.assert_close(out.losses["commitment"], 3 * published)
    mine = torch.autograd.grad(out.losses["commitment"], z, retain_graph=True)[0]
    torch.testing.assert_close(mine, torch.autograd.grad(published, z)[0])
    (identity,) = torch.autograd.grad(out.codes.sum(), z, retain_graph=True)
    torch.testing.assert_close(identity, torch.ones_like(z))
    before = torch.cat([torch.zeros_like(partial[:, :1]), partial[:, :-1]], 1).detach()
    pulls = (codebook[out.indices] - (z[:, None] - before).detach()).square().mean((0, 2)).sum()
    to_codes = torch.autograd.grad(out.losses["codebook"], codebook)[0]
    torch.testing.assert_close(to_codes, torch.autograd.grad(pulls, codebook)[0])


class Unrounded(VQ):
    """VQ that would have its input rendered too."""

    def forward(self, z):
        return replace(super().forward(z), further=(z,))


def test_further_codes_are_the_last_depths_on_top_of_the_depths_before():
    # what is not quantized at the last depth makes up for all the others: z again, with the gradient of z
    quantizer = Residual(lambda: Unrounded(4, 6), depth=3).double()
    z = torch.randn(50, 4, dtype=torch.float64, requires_grad=True)
    (further,) = quantizer(z).further
    torch.testing.assert_close(further, z)
    (gradient,) = torch.autograd.grad(further.sum(), z)
    torch.testing.assert_close(gradient, torch.ones_like(z))


def test_a_prefix_of_the_indices_is_the_partial_sum():
    quantizer, z = make(shared=False)
    out = quantizer.eval()(z)
    total = torch.zeros_like(z)
    for depth, layer in enumerate(quantizer.layers):
        rest = z - total
        assert torch.equal(layer(rest).indices[:, 0], out.indices[:, depth])
        total = total + codebook_of(layer)[out.indices[:, depth]]
        assert torch.equal(quantizer.dequantize(out.indices[:, : depth + 1]), total)
    assert torch.equal(out.codes, total)


def test_depth_one_is_the_base():
    quantizer, z = make(depth=1)
    out, base = quantizer(z), quantizer.layers[0](z)
    assert torch.equal(out.codes, base.codes)
    assert all(torch.equal(out.losses[name], loss) for name, loss in base.losses.items())


def test_the_rest_shrinks_for_every_vector_only_if_a_code_is_zero():
    quantizer, z = make(depth=4)
    indices = quantizer.eval()(z).indices
    rests = [(z - quantizer.dequantize(indices[:, :depth])).norm(dim=1) for depth in (1, 2, 3, 4)]
    assert any((later > before).any() for before, later in itertools.pairwise(rests))
    codebook_of(quantizer.layers[0]).data[0] = 0
    indices = quantizer(z).indices
    rests = [(z - quantizer.dequantize(indices[:, :depth])).norm(dim=1) for depth in (1, 2, 3, 4)]
    assert all((later <= before).all() for before, later in itertools.pairwise(rests))


@pytest.mark.parametrize("shared", [True, False])
def test_a_start_from_data_serves_every_depth(shared):
    quantizer, z = make(name="vq_ema", codebook_size=16, shared=shared)
    quantizer.initialize(z.detach())
    out = quantizer.eval()(z)
    errors = [(z - quantizer.dequantize(out.indices[:, :depth])).square().mean() for depth in (1, 2, 3)]
    assert errors[0] > 1.2 * errors[1] > 1.2**2 * errors[2]
    assert quantizer.state_dict().keys() == dict.fromkeys(quantizer.state_dict()).keys()
    assert len(quantizer.layers) == (1 if shared else 3)
