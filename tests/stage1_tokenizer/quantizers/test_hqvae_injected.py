"""SQ-VAE-2 against its recursion written out, its evidence from the layers, and what injection is."""

import pytest
import torch
from torch.nn import functional as F

from stage1_tokenizer.quantizers import build_quantizer
from stage1_tokenizer.quantizers.hqvae_injected import InjectedTopDown
from stage1_tokenizer.quantizers.sqvae import SQVAE

VQ = {"name": "vq", "dim": 3, "codebook_size": 9}
SQ = {"name": "sqvae", "dim": 3, "codebook_size": 9, "weight": 1.0}


def make(base, sides=(1, 2), awake=True):
    torch.manual_seed(0)
    quantizer = build_quantizer("hqvae_injected", base=base, sides=sides)
    assert isinstance(quantizer, InjectedTopDown)
    for layer in quantizer.layers:
        for codes in layer.parameters():
            codes.data.normal_()
    if awake:
        for parameter in quantizer.injections.parameters():
            parameter.data.normal_()
    return quantizer.double(), torch.randn(2, 4, 6, quantizer.input_dim, dtype=torch.float64, requires_grad=True)


def written_out(quantizer, z):
    """Two layers of `vq`: indices, codes and loss, with an average and a repetition over 2 x 2 cells."""

    def look_up(x, codebook):
        index = torch.cdist(x.detach().flatten(0, 2), codebook.detach()).argmin(1)
        codes = codebook[index].view_as(x)
        loss = F.mse_loss(codes, x.detach()) + 0.25 * F.mse_loss(x, codes.detach())
        return index.view(len(x), -1), x + (codes - x).detach(), loss

    top, bottom = z[..., :3], z[..., 3:]
    small = (top[:, ::2, ::2] + top[:, 1::2, ::2] + top[:, ::2, 1::2] + top[:, 1::2, 1::2]) / 4
    top_index, top_codes, top_loss = look_up(small, quantizer.layers[0].codebook)
    top_codes = top_codes.repeat_interleave(2, 1).repeat_interleave(2, 2)
    weight, bias = quantizer.injections[0].weight, quantizer.injections[0].bias
    around = F.pad(top_codes, (0, 0, 1, 1, 1, 1)).unfold(1, 3, 1).unfold(2, 3, 1)
    seen = bottom + torch.einsum("bhwcyx,ocyx->bhwo", around, weight) + bias
    index, codes, loss = look_up(seen, quantizer.layers[1].codebook)
    return torch.cat([top_index, index], 1), torch.cat([top_codes, codes], 3), top_loss / 4 + loss


def test_agrees_with_the_recursion_written_out_in_value_and_gradient():
    quantizer, z = make(VQ)
    out = quantizer(z)
    indices, codes, loss = written_out(quantizer, z)
    assert torch.equal(out.indices[..., 0], indices)
    torch.testing.assert_close(out.codes, codes)
    mine = torch.stack(list(out.losses.values())).sum()
    torch.testing.assert_close(mine, loss)
    wanted = [z, *quantizer.parameters()]
    cotangent = torch.randn_like(codes)
    ours = torch.autograd.grad(mine + (out.codes * cotangent).sum(), wanted)
    theirs = torch.autograd.grad(loss + (codes * cotangent).sum(), wanted)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_the_evidence_is_that_of_every_layer():
    """sum_l sum_tokens |zhat_l - Z_l|^2 / (2 s_l^2) - H(p_l), over the positions of the finest grid."""
    quantizer, z = make(SQ)
    out = quantizer(z)
    total, above = z.new_zeros(()), z.new_empty(2, 0, 4, 6)
    for number, (scale, layer) in enumerate(zip(quantizer.scales((4, 6)), quantizer.layers, strict=True)):
        assert isinstance(layer, SQVAE)
        layer.layers[0].noise.drawn.zero_()  # the same noise again
        seen = quantizer._seen(z, above, number, scale)
        sample = layer.layers[0].sample(seen, layer.temperature)
        distance = (seen - sample.codes).square().sum() / (2 * layer.layers[0].log_variance.exp())
        total = total + distance + (sample.posterior * sample.posterior.log()).sum()
        codes = sample.codes.view(2, *scale, 3).repeat_interleave(4 // scale[0], 1).repeat_interleave(6 // scale[1], 2)
        above = torch.cat([above, codes.permute(0, 3, 1, 2)], 1)
    torch.testing.assert_close(torch.stack(list(out.losses.values())).sum(), total / (2 * 4 * 6))
    torch.testing.assert_close(out.codes, above.permute(0, 2, 3, 1))


def test_what_stands_above_is_injected():
    z = make(VQ)[1].detach()
    other = z.clone()
    other[..., :3] = other[..., :3].flip(1)  # the coarse layer's channels alone
    for awake, differs in ((True, True), (False, False)):
        quantizer = make(VQ, awake=awake)[0].eval()
        top, fine = (quantizer(z).indices != quantizer(other).indices).split([6, 24], 1)
        assert top.any() and fine.any().item() == differs


def test_one_layer_is_the_base():
    quantizer, z = make(VQ, sides=(1,))
    base = quantizer.layers[0](z.flatten(0, 2))
    out = quantizer(z)
    assert torch.equal(out.indices.flatten(0, 1), base.indices)
    assert torch.equal(out.codes.flatten(0, 2), base.codes)
    assert out.losses == base.losses


def test_every_layer_starts_from_what_it_sees():
    quantizer, z = make({**VQ, "name": "vq_ema"}, sides=(1, 2, 4))
    quantizer.initialize(z.detach())
    out = quantizer.eval()(z)
    above = z.new_empty(2, 0, 4, 6)
    for number, (scale, codes) in enumerate(zip(quantizer.scales((4, 6)), out.codes.split(3, 3), strict=True)):
        seen = quantizer._seen(z, above, number, scale)
        spread = (seen - seen.mean(0)).square().sum()
        mine = F.adaptive_avg_pool2d(codes.permute(0, 3, 1, 2), scale).permute(0, 2, 3, 1).flatten(0, 2)
        assert (seen - mine).square().sum() < 0.8 * spread
        above = torch.cat([above, codes.permute(0, 3, 1, 2)], 1)


def test_scales_do_not_merge_on_small_grids():
    quantizer, _ = make(VQ, sides=(1, 2, 4))
    assert quantizer.scales((8, 8)) == ((2, 2), (4, 4), (8, 8))
    assert quantizer.scales((1, 1)) == ((1, 1),) * 3
    assert quantizer.dim == quantizer.input_dim == 9


@pytest.mark.parametrize("sides", [(), (0, 1), (3, 2), (2, 2)])
def test_a_mistake_in_the_sides_gets_a_line_that_helps(sides):
    with pytest.raises(ValueError, match=r"InjectedTopDown\.sides.*increasing"):
        make(VQ, sides=sides)
