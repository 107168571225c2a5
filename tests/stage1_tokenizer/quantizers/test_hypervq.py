"""HyperVQ: its logits against the formula in the ball, its geometry, gradients through the draw."""

import torch
from torch.nn import functional as F

from stage1_tokenizer.quantizers.hypervq import HyperVQ

N, K, C = 30, 7, 4


def exp_0(z):
    return z.norm(dim=1, keepdim=True).tanh() * F.normalize(z, dim=1)


def log_0(x):
    return x.norm(dim=1, keepdim=True).atanh() * F.normalize(x, dim=1)


def make(**options):
    torch.manual_seed(0)
    return HyperVQ(C, K, **options).double(), torch.randn(N, C, dtype=torch.float64).requires_grad_()


def in_the_ball(quantizer, z):
    """The multinomial regression of HNN++, written with x and the conformal factor."""
    x = exp_0(z)
    factor = 2 / (1 - x.square().sum(1, keepdim=True))
    r = (1 + quantizer.offsets.exp()).log()
    length = quantizer.directions.square().sum(1).sqrt()
    inner = factor * x @ (quantizer.directions / length[:, None]).T
    return 2 * length * torch.asinh(inner * torch.cosh(2 * r) - (factor - 1) * torch.sinh(2 * r))


def test_logits_are_those_of_the_ball_in_value_and_gradient():
    quantizer, z = make()
    mine, theirs = quantizer.logits(z), in_the_ball(quantizer, z)
    torch.testing.assert_close(mine, theirs)
    leaves = [z, quantizer.directions, quantizer.offsets]
    cotangent = torch.randn(N, K, dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad(mine, leaves, cotangent), torch.autograd.grad(theirs, leaves, cotangent)
    )


def test_a_code_lies_on_its_own_hyperplane_which_divides_the_ball():
    quantizer, _ = make()
    codes = quantizer.codebook()
    assert quantizer.logits(codes).diagonal().abs().max() < 1e-12
    assert (quantizer.logits(1.1 * codes).diagonal() > 0).all()
    assert (quantizer.logits(0.9 * codes).diagonal() < 0).all()
    points = exp_0(codes)
    assert (points.norm(dim=1) < 1).all()
    torch.testing.assert_close(log_0(points), codes)
    distance = torch.acosh(1 + 2 * points.square().sum(1) / (1 - points.square().sum(1)))
    torch.testing.assert_close(distance, 2 * F.softplus(quantizer.offsets))


def test_the_draw_is_hard_in_value_and_relaxed_in_gradient():
    quantizer, z = make()
    out = quantizer(z)
    codes = quantizer.codebook()
    assert torch.equal(out.codes, codes[out.indices[:, 0]])
    quantizer.noise.drawn.zero_()  # the same noise again
    logits = in_the_ball(quantizer, z)
    relaxed = (logits + quantizer.noise.gumbel(logits)).softmax(1)
    assert torch.equal(relaxed.argmax(1), out.indices[:, 0])
    cotangent = torch.randn(N, C, dtype=torch.float64)
    leaves = [z, quantizer.directions, quantizer.offsets]
    one_hot = F.one_hot(out.indices[:, 0], K) + relaxed - relaxed.detach()
    expected = torch.autograd.grad(one_hot @ codes, leaves, cotangent)
    torch.testing.assert_close(torch.autograd.grad(out.codes, leaves, cotangent), expected)
    usage = logits.softmax(1).mean(0)
    torch.testing.assert_close(out.losses["usage"], 0.01 * (usage * (usage * K).log()).sum())


def test_no_length_is_too_large_or_too_small():
    quantizer, z = make()
    assert torch.equal(quantizer.eval()(z).indices[:, 0], in_the_ball(quantizer, z).argmax(1))
    quantizer.train().float()
    for size in (0.0, 1e-9, 1e4):
        x = (size * z.detach()).float().requires_grad_()
        out = quantizer(x)
        total = out.codes.sum() + torch.stack(list(out.losses.values())).sum()
        assert torch.autograd.grad(total, x)[0].isfinite().all()
